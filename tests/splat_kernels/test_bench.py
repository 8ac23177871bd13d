"""The benchmark command on a tiny scene: what it writes, and how it refuses."""

import json

import numpy as np
import pytest

from splat_kernels import bench, peers


def run(capsys, *arguments):
  """Exit code, and what was printed to stdout and stderr."""
  try:
    bench.main(list(arguments))
    code = 0
  except SystemExit as e:
    code = e.code
  return code, *capsys.readouterr()


def test_rows_and_table_of_two_implementations_and_a_peer(capsys, tmp_path, monkeypatch):
  calls = []

  def make_peer(spec):
    parts = {part: lambda part=part: calls.append(part) for part in ("forward", "forward_backward")}
    return {"name": "peer"}, parts, np.zeros((spec.batch, spec.height, spec.width, 3), np.float32)

  def make_absent(spec):
    raise peers.NotHere("needs a CUDA device")

  monkeypatch.setattr(peers, "PEERS", {"peer": make_peer, "absent": make_absent})
  files = tmp_path / "rows.json", tmp_path / "table.md"
  code, out, err = run(
      capsys,
      *("--spec", "tiny", "--implementation", "xla", "reference", "--tile_size", "8", "--runs", "2"),
      *("--json", str(files[0]), "--markdown", str(files[1])),
  )
  assert code == 0 and "absent: needs a CUDA device" in err

  result = json.loads(files[0].read_text())
  xla, reference, peer = result["rows"]
  assert [row["name"] for row in result["rows"]] == ["xla", "reference", "peer"]
  assert result["floor_evaluations_per_s"]["8"] > 0 and result["process_peak_mb"] > 100
  assert xla["ratio"] == 1 and xla["image_difference"] == 0 and xla["memory_mb"] > 0 and xla["compile_s"] > 0
  # The parts add up, and nothing is faster than its fastest run.
  total = sum(xla[key] for key in ("project_ms", "bin_ms", "sort_ms", "raster_ms", "backward_ms"))
  np.testing.assert_allclose(total, xla["forward_backward_ms"], rtol=1e-6)
  assert xla["forward_ms_least"] <= xla["forward_ms"] and xla["forward_backward_cpu_ms"] > 0
  assert xla["intersections"] <= reference["intersections"] and "bin_ms" not in reference
  assert reference["image_difference"] < 5e-3  # One pixel may lie on the other side of a cut-off of 1/255.
  assert peer["image_difference"] > 0.1 and calls == ["forward", "forward_backward"] * 3  # One round does not count.

  table = files[1].read_text().splitlines()
  assert table[0].endswith(f"process at most {result['process_peak_mb']:.0f} MB") and "\n".join(table) in out
  assert [line.split(" | ")[1] for line in table[4:]] == ["xla", "reference", "peer"]
  assert len({line.count("|") for line in table[2:]}) == 1  # As many cells as headings.


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--spec", "tiny", "huge"), "--spec=huge: not one of head10k, "),
        (("--implementation", "cuda"), "--implementation=cuda: not one of reference, xla"),
        (("--tile_size", "12"), "Config: tile_size=12 must be one of"),
    ],
)
def test_bad_names_end_in_one_line_and_code_2(capsys, arguments, message):
  code, out, err = run(capsys, *arguments)
  assert code == 2 and out == "" and err.startswith(message) and err.count("\n") == 1


def test_slots_before_sorting_are_sorted_into_the_lists():
  # What "sort" times is what binning sorts: by tile, and within a tile by depth.
  candidate = bench.make_candidate("xla", bench.SPECS["tiny"], bench.Config(with_depth=False))
  (_, (slots, starts)), bins = candidate.parts["sort"](), candidate.parts["bins"]()
  used = int(bins.starts[0, -1])
  (unsorted,) = candidate.parts["sort"].run.args[1:]
  np.testing.assert_array_equal(np.asarray(unsorted)[0, slots[0]], bins.tiles[0])
  np.testing.assert_array_equal(starts, bins.starts)
  assert np.any(np.diff(np.asarray(unsorted)[0, :used]) < 0)
