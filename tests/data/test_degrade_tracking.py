"""A capture in worse tracking: what changes, by how much, and that the reader takes it."""

import json

import numpy as np
import pytest

import tiny_world
from rsatalker_jax.data.captures import load_capture
from rsatalker_jax.data.triplets import load_triplets
from tools import degrade_tracking


def test_errors_have_their_sizes():
  count = 20_000
  still = {"expr": np.full((count, 100), 0.5), **{name: np.zeros((count, 3)) for name in ("jaw_pose", "neck_pose", "translation")}}
  worse = degrade_tracking.degrade(still)
  # Gains and biases are constant in time, noise has its spread and its memory.
  gain_and_bias = worse["expr"][:, :50].mean(axis=0) - 0.5
  assert 0.5 * 0.1 < gain_and_bias.std() < 0.5 * 0.25
  np.testing.assert_allclose(worse["expr"][:, :50].std(axis=0), 0.02, rtol=0.2)
  noise = worse["expr"][:, 3] - worse["expr"][:, 3].mean()
  assert np.corrcoef(noise[1:], noise[:-1])[0, 1] == pytest.approx(0.8, abs=0.03)
  np.testing.assert_array_equal(worse["expr"][:, 50:], 0.5)
  np.testing.assert_allclose(np.degrees(worse["jaw_pose"].mean(axis=0)), [1, 0, 0], atol=0.05)
  np.testing.assert_allclose(np.degrees(worse["neck_pose"].mean(axis=0)), [1, -0.7, 0.5], atol=0.05)
  np.testing.assert_allclose(np.degrees(worse["neck_pose"].std(axis=0)), 0.3, rtol=0.1)
  np.testing.assert_allclose(worse["translation"].std(axis=0), 5e-4, rtol=0.1)
  # The gain of the jaw, and the same gains in a film of another length.
  open_jaw = {name: x[:50] for name, x in still.items()} | {"jaw_pose": np.full((50, 3), 0.2)}
  again = degrade_tracking.degrade(open_jaw)
  assert np.mean(again["jaw_pose"][:, 1]) == pytest.approx(0.85 * 0.2)
  np.testing.assert_allclose(again["expr"][:, :50].mean(axis=0), worse["expr"][:, :50].mean(axis=0), atol=0.03)


def test_the_degraded_capture_is_read(tmp_path):
  root = tmp_path / "data"
  tiny_world.write_world(root)
  degrade_tracking.write_degraded(root / "capture", root / "worse")
  before, after = (load_capture(root / name, "train", background=(1, 1, 1)) for name in ("capture", "worse"))
  assert len(before) == len(after)
  np.testing.assert_array_equal(before[1]["image"], after[1]["image"])
  assert np.abs(before[1]["flame"]["neck"] - after[1]["flame"]["neck"]).max() > 1e-3
  np.testing.assert_array_equal(before[1]["flame"]["eyes"], after[1]["flame"]["eyes"])
  films = load_triplets(root / "worse.jsonl")
  assert films and {film.capture.name for film in films} == {"worse"}
  assert len(films) == sum(json.loads(line)["capture"] == "capture" for line in (root / "triplets.jsonl").read_text().splitlines())
  with pytest.raises(SystemExit, match="expected none"):
    degrade_tracking.write_degraded(root / "capture", root / "worse")
  with pytest.raises(SystemExit, match="expected a capture"):
    degrade_tracking.write_degraded(tmp_path, root / "more")
  assert not (root / "more").exists()
