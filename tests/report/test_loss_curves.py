"""Loss curves from files written by hand."""

import json
import re

import numpy as np
import pytest

from rsatalker_jax.errors import InputError
from rsatalker_jax.report import losses


def write(path, *entries, end="\n"):
  path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in entries) + end)
  return path


def test_curves_are_those_of_the_file(tmp_path):
  path = write(
      tmp_path / "metrics.jsonl",
      {"step": 40, "loss": 1.5, "val/l1": 0.2},
      {"step": 20, "loss": 3.0, "l1": 0.5},
      '{"step": 60, "loss": NaN, "l1": 0.25}',
  )
  curves = losses.read_metrics(path)
  np.testing.assert_array_equal(curves["loss"], [[20, 40, 60], [3.0, 1.5, np.nan]])
  np.testing.assert_array_equal(curves["l1"], [[20, 60], [0.5, 0.25]])
  np.testing.assert_array_equal(curves["val/l1"], [[40], [0.2]])


def test_a_cut_last_line_is_passed_over_and_no_other(tmp_path):
  good = {"step": 1, "loss": 2.0}
  assert list(losses.read_metrics(write(tmp_path / "a", good, '{"step": 2, "lo', end=""))["loss"][0]) == [1]
  for bad in ('{"step": 2, "lo', "[1]", '{"loss": 1}', '{"step": 2, "loss": "x"}', '{"step": NaN}', '{"step": 2, "loss": null}'):
    with pytest.raises(InputError, match="line 1: found .*, expected an object of numbers, with a step"):
      losses.read_metrics(write(tmp_path / "b", bad, good))
  with pytest.raises(InputError, match="line 2"):
    losses.read_metrics(write(tmp_path / "c", good, '{"step": 2, "lo'))


def test_each_number_has_its_chart_or_its_words():
  ramp = np.arange(1.0, 4.0), np.array([9.0, 3.0, 1.0])
  curves = {
      "step": (ramp[0], ramp[0]), "steps_per_second": ramp, "loss": ramp, "l1": ramp, "val/l1": ramp, "val/score": ramp,
      "val/psnr": ramp, "offset": (ramp[0], np.zeros(3)), "val/fd": (np.array([3.0]), np.array([0.125])),
  }
  page = losses.draw_losses(curves, "avatar")
  labels = re.findall(r'class="y-label"[^>]*>([^<]*)<', page)
  assert labels == ["loss", "score", "l1", "psnr (dB)"]
  large, small = page.split("<details>")
  assert "psnr" not in large and "3 charts" not in small and "(2 charts)" in small
  together = next(chart for chart in page.split("<svg") if ">l1<" in chart)
  assert "line-train" in together and "line-val" in together
  assert "line-val" not in next(chart for chart in page.split("<svg") if ">loss<" in chart)
  assert "Once: fd 0.125 (held out (val), step 3). Zero throughout: offset." in page
  assert 'aria-label="avatar stage: l1 by step"' in page
  # All charts of a stage have one axis of steps, from zero.
  assert {re.findall(r'class="x-tick"[^>]*>([^<]*)<', chart)[0] for chart in page.split("<svg")[1:]} == {"0"}


def test_usage_in_words():
  assert losses.describe_usage({}) == ""
  used = {"seconds": 90, "steps": 4000, "peak_memory_bytes": 3 * 2**20}
  assert losses.describe_usage(used) == "4000 steps, 1.5 min, 3 MiB of memory at most"
  assert losses.describe_usage({"seconds": 9, "parameters": {"a": 1000, "b": 234}}) == "9.0 s, 1,234 parameters"
