"""Backchannels of conversations made by hand, frame by frame."""

import numpy as np
import pytest

from rsatalker_jax.data.demo.expressions import COLUMN, EXPRESSION_NAMES
from rsatalker_jax.evaluation import backchannels

NOD, SMILE = backchannels.find_gestures(EXPRESSION_NAMES)
FRAMES = 200


def mask(*runs):
  frames = np.zeros(FRAMES, bool)
  for start, end in runs:
    frames[start:end] = True
  return frames


def nods(*starts, column=COLUMN["headPitch"], depth=0.06):
  """Six frames down and six up again, from each start on."""
  motion = np.zeros((FRAMES, 56), np.float32)
  for start in starts:
    motion[start : start + 13, column] = depth * (1 - np.abs(np.arange(13) - 6) / 6)
  return motion


def test_phrase_ends():
  ends = lambda partner, own=(): backchannels.find_phrase_ends(mask(*partner), mask(*own)).tolist()
  assert ends([(20, 60), (100, 150)]) == [60, 150]
  assert ends([(20, 60), (65, 80)]) == [80] and ends([(20, 60), (66, 80)]) == [60, 80]  # A pause of 5, and of 6 frames.
  assert ends([(49, 60)]) == [] and ends([(48, 60)]) == [60]  # 11 and 12 frames of voice.
  assert ends([(49, 55), (58, 64)]) == [64]  # Together they are long enough.
  silent = [(45, 1), (74, 1)]
  assert ends([(20, 60)], [(44, 45)]) == [60] == ends([(20, 60)], [(75, 90)])  # B is silent from 45 to 74.
  assert all(ends([(20, 60)], [(frame, frame + 1)]) == [] for frame, _ in silent)
  assert ends([(2, 14)]) == [] and ends([(150, 186)]) == [] and ends([(150, 185)]) == [185]  # No whole window.
  assert ends([]) == []


def test_onsets():
  found = NOD.onsets(nods(40, 100))
  assert len(found) == 2 and all(0 <= start - onset <= 2 for start, onset in zip((40, 100), found))
  # Too shallow, too slow, up instead of down, and another coefficient.
  slow = nods()
  slow[:, COLUMN["headPitch"]] = 0.003 * np.arange(FRAMES)
  assert not any(len(NOD.onsets(motion)) for motion in (nods(40, depth=0.015), slow, -nods()[::-1] - slow, nods(40, column=54)))
  assert len(SMILE.onsets(nods(40, column=COLUMN["mouthSmileLeft"], depth=0.3))) == 1
  assert [gesture.name for gesture in backchannels.find_gestures(())] == ["nod"]


def test_timing():
  timing = backchannels.BackchannelTiming(NOD)
  assert timing.scores() == {}
  ends = np.array([40, 80, 120, 160])
  # The truth nods after each end by 6 frames; the prediction after two, 3 frames later, and once before an end.
  truth, pred = nods(*(ends + 6)), nods(49, 89, 110)
  offset = NOD.onsets(truth)[0] - 40  # As an onset is found, a frame or two before the first step.
  timing.add(pred, truth, ends)
  scores = timing.scores()
  assert scores == pytest.approx({
      "backchannel/ends": 4,
      "backchannel/nod_answered": 0.5,
      "backchannel/nod_before": 0.25,
      "backchannel/nod_delay": (offset + 3) / 25,
      "backchannel/nod_distance": 3 / 25,
  })
  # Another clip counts as much; what comes after the window is no answer.
  timing.add(nods(40 + backchannels.WINDOW + 2), truth, ends[:1])
  assert timing.scores()["backchannel/nod_answered"] == 0.4 and timing.scores()["backchannel/ends"] == 5
  still = backchannels.BackchannelTiming(NOD)
  still.add(nods(), truth, ends)
  assert still.scores() == {"backchannel/ends": 4, "backchannel/nod_answered": 0, "backchannel/nod_before": 0}
