"""Joined clips, and errors that are put where they belong."""

import numpy as np
import pytest

from rsatalker_jax.data.pipeline import MotionClip
from rsatalker_jax.evaluation import long_conversation
from rsatalker_jax.evaluation.long_conversation import LONGEST, MINUTE


def make_clip(number, frames):
  motion = lambda offset: np.random.default_rng(number + offset).normal(size=(frames, 56)).astype(np.float32)
  speech = lambda offset: np.full((frames, 2), number + offset, np.float32)
  return MotionClip(str(number), speech(0.25), motion(100), speech(0.75), motion(200), np.array([1, 0], np.int32), basis="flame2020")


def test_join_up_to_ten_minutes_and_read_no_further():
  clips, read = [make_clip(n, 4000) for n in range(6)], []
  conversation = long_conversation.join_clips(read.append(n) or clips[n] for n in range(6))
  assert read == [0, 1, 2, 3] and conversation.starts == (0, 4000, 8000, 12000)
  clip = conversation.clip
  for field in ("speech_a", "motion_a", "speech_b", "motion_b"):
    whole = np.concatenate([getattr(c, field) for c in clips[:4]])[:LONGEST]
    np.testing.assert_array_equal(getattr(clip, field), whole)
  assert clip.relation.tolist() == [1, 0] and clip.name == "0 and 3 more"
  assert long_conversation.join_clips([make_clip(0, 2 * MINUTE - 1)]) is None and long_conversation.join_clips([]) is None
  assert long_conversation.join_clips([make_clip(0, 2 * MINUTE)]).clip.name == "0"


def test_each_minute_has_its_own_error():
  clips = [make_clip(0, 2000), make_clip(1, 1600)]
  conversation = long_conversation.join_clips(clips)
  asked = []

  def drifting(clip):
    """Off by a tenth for each minute since the clip began."""
    asked.append((len(clip.motion_b), clip.speech_a[0, 0], clip.speech_b[-1, 1]))
    return clip.motion_b + 0.1 * (np.arange(len(clip.motion_b)) // MINUTE)[:, None].astype(np.float32)

  minutes = long_conversation.error_by_minute(drifting, conversation)
  assert asked == [(3600, 0.25, 1.75), (2000, 0.25, 0.75), (1600, 1.25, 1.75)]
  assert len(minutes) == 2  # The last 600 frames are no minute.
  assert [minute["mse/jaw"] for minute in minutes] == pytest.approx([0, 0.01], abs=1e-6)
  # Clip by clip: frames 1500 to 1999 are in the first clip's second minute, the next thousand in the other's first.
  assert [minute["pieces/mse/pose"] for minute in minutes] == pytest.approx([0, 0.01 / 3], abs=1e-6)
