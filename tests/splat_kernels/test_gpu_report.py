"""The report about a GPU: what the script says without one, and its parts, here of interpreted kernels."""

import json
import pathlib
import runpy
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splat_kernels import bench

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "gpu_report.py"


@pytest.fixture(scope="module")
def script():
  return runpy.run_path(str(SCRIPT))


def test_without_a_gpu_it_says_so_in_one_line(script, capsys, tmp_path):
  with pytest.raises(SystemExit) as stopped:
    script["main"](["--out", str(tmp_path)])
  out, err = capsys.readouterr()
  assert stopped.value.code == 1 and out == ""
  assert err.startswith("no NVIDIA GPU: ") and err.count("\n") == 1
  assert not list(tmp_path.iterdir())


def test_parity_rows(script):
  table, rows = script["compare"]("tiny", "pallas_triton")
  assert [row["against"] for row in rows] == ["reference", "xla"]
  for row in rows:  # The bounds of the shared test class.
    assert 0 < row["image_max"] < 5e-3 and row["share_above_1e-4"] < 1e-3 and row["bit_equal_reruns"]
    assert 0 < row["worst_gradient_error"] == max(row["gradients"].values()) < 1e-3
  lines = table.splitlines()
  assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1


def test_rows_of_single_gaussians(script):
  scenes = script["layered_scenes"]()
  assert all(len(scene["opacities"]) > 64 for scene in scenes.values())  # More than a chunk.
  few = {key: value[:9] for key, value in scenes["layers"].items()}
  _, (row,) = script["check_gaussians"]("reference", {"few": few})
  assert 0 < row["worst_of_a_gaussian"] < 1e-3 and row["bit_equal_reruns"]


def test_a_part_that_fails_stops_no_other(script, tmp_path, capsys):
  def fail():
    raise RuntimeError("no such\nkernel")

  parts = [("first", fail), ("second", lambda: ("fine", {"x": 1.5}))]
  head = {"device": "a card", "jax": "1"}
  assert script["run_parts"](parts, tmp_path, head, 100) == ["first"]
  report = (tmp_path / "gpu_report.md").read_text()
  assert "## first\n\nFAILED: RuntimeError: no such kernel\n" in report and "## second\n\nfine\n" in report
  results = json.loads((tmp_path / "gpu_report.json").read_text())
  assert results["first"] == {"failed": "RuntimeError: no such kernel"} and results["second"] == {"x": 1.5}
  assert results["device"] == "a card"
  assert script["run_parts"]([("late", fail)], tmp_path, head, -1) == []  # Not begun, as no time is left.
  assert "## late\n\nnot begun" in (tmp_path / "gpu_report.md").read_text()


def test_all_parts_have_a_name_of_their_own(script, tmp_path, monkeypatch):
  card = types.SimpleNamespace(compute_capability="9.0")
  monkeypatch.setattr(jax, "devices", lambda: [card])
  titles = [title for title, _ in script["parts_here"](tmp_path, 3)]
  assert len(set(titles)) == len(titles)
  for wanted in ("gradients of each Gaussian", "parity: pallas_triton, batch", "kernels", "times: head100k"):
    assert any(title.startswith(wanted) for title in titles), wanted


def test_only_some_parts(script, monkeypatch, tmp_path, capsys):
  card = types.SimpleNamespace(compute_capability="9.0", device_kind="a card")
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  monkeypatch.setattr(jax, "devices", lambda: [card])
  script["main"](["--out", str(tmp_path), "--only", "parity.*(tiny|batch)$", "--seconds", "-1"])
  titles = [title for title in json.loads((tmp_path / "gpu_report.json").read_text()) if title.startswith(("parity", "times"))]
  assert titles and all(title.endswith((" tiny", " batch")) for title in titles)
  with pytest.raises(SystemExit):
    script["main"](["--out", str(tmp_path), "--only", "no such part"])
  assert "'no such part' is in no part's title" in capsys.readouterr().err


def test_times_of_those_who_can_draw(script, monkeypatch):
  def make(name, spec, config):
    if name == "second":
      raise RuntimeError("CUDA is\ntoo old")
    parts = {"forward": lambda: None, "forward_backward": lambda: None}
    return bench.Candidate({"name": name, "tile_size": 16}, parts, np.zeros((1, 2, 2, 3)))

  monkeypatch.setattr(bench, "make_candidate", make)
  monkeypatch.setattr(bench, "measure_floor", lambda tile_size, runs: 1.0)
  table, result = script["time_spec"]("head10k", ("first", "second", "third"), 1)
  assert [row["name"] for row in result["rows"]] == ["first", "third"]
  assert result["missing"][0] == "second: RuntimeError: CUDA is too old" and result["missing"][0] in table
  assert [line.split(":")[:2] for line in result["missing"][1:]] == [["gsplat", " NotHere"], ["splax", " NotHere"]]


def test_profile_sums_the_times_of_each_kernel(script, tmp_path):
  sort = jax.jit(jnp.sort)
  numbers = jnp.linspace(1, 0, 1000)
  table, rows = script["profile"](lambda: sort(numbers).block_until_ready(), tmp_path, plane="/host:CPU", runs=3)
  assert rows[0]["kernel"] == "all" and abs(rows[0]["us"] - sum(row["us"] for row in rows[1:])) < 1e-3
  (found,) = (row for row in rows if row["kernel"].startswith("sort"))
  spent = script["device_times"](tmp_path, "/host:CPU")[found["kernel"]]
  assert found["us"] == pytest.approx(1e-3 * sum(spent) / 3) and found["launches"] == len(spent) / 3 >= 1
  assert "| sort" in table
  with pytest.raises(ValueError, match="has nothing on /device:GPU"):
    script["profile"](lambda: None, tmp_path, runs=1)
