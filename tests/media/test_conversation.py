"""The side-by-side picture: places, sizes and the level of a known tone."""

import numpy as np
import pytest

from rsatalker_jax.media import conversation


def test_levels_of_silence_and_of_a_full_scale_square_wave():
  wav = np.concatenate([np.zeros(640), np.ones(640), 0.1 * np.ones(320)]).astype(np.float32)
  levels = conversation.voice_levels(wav, 4, 25)
  # -20 dB over half of the frame is -23 dB; the fourth frame lies behind the end.
  np.testing.assert_allclose(levels, [0, 1, 1 - 23.01 / 60, 0], atol=1e-3)


def test_faces_stand_side_by_side_with_even_sizes():
  left = [np.full((65, 64, 3), 200, np.uint8)] * 2
  right = [np.full((65, 64, 3), 90, np.uint8)] * 2
  frames = list(conversation.side_by_side(left, right, ("A", "B"), (np.zeros(2), np.array([0.0, 1.0]))))
  assert len(frames) == 2 and frames[0].shape[0] % 2 == 0 and frames[0].shape[1] == 128
  assert (frames[0][:65, :64] == 200).all() and (frames[0][:65, 64:] == 90).all()
  (bare, _) = conversation.side_by_side(left, right, None, (np.zeros(2), np.zeros(2)))
  np.testing.assert_array_equal(bare, frames[0][:65])
  changed = np.argwhere((frames[0] != frames[1]).any(axis=-1))
  assert changed[:, 0].min() >= 65 and changed[:, 1].min() >= 64  # Only B's bar moved.


def test_different_lengths_are_refused():
  frame = np.zeros((64, 64, 3), np.uint8)
  with pytest.raises(ValueError):
    list(conversation.side_by_side([frame], [frame] * 2, ("A", "B"), (np.zeros(2), np.zeros(2))))
