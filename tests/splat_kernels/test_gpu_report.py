"""The report about a GPU: what the script says without one, and its comparison, here of interpreted kernels."""

import pathlib
import runpy

import pytest

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
  rows = script["compare"]("tiny", "pallas_triton")
  assert [row["against"] for row in rows] == ["reference", "xla"]
  for row in rows:  # The bounds of the shared test class.
    assert 0 < row["image_max"] < 5e-3 and row["share_above_1e-4"] < 1e-3 and row["bit_equal_reruns"]
    assert 0 < row["worst_gradient_error"] == max(row["gradients"].values()) < 1e-3
  table = script["format_parity"](rows).splitlines()
  assert len(table) == 4 and len({line.count("|") for line in table}) == 1
