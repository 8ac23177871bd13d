"""Cases of conversations on disk: read when they are asked for, with each person's own voice and motion."""

import numpy as np
import pytest
import soundfile

import tiny_world
from rsatalker_jax.data.dualtalk import load_dualtalk
from rsatalker_jax.data.triplets import Triplet
from rsatalker_jax.evaluation.cases import ConversationCases


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """Three conversations of 60 frames, in which speaker 1 speaks in the first 20 frames and speaker 2 in the last 30."""
  root = tmp_path_factory.mktemp("conversations")
  tiny_world.write_conversations(root)
  for speaker, frames in ((1, slice(0, 20)), (2, slice(30, 60))):
    wav = np.zeros((60, 640), np.float32)
    wav[frames] = 0.3 * np.sin(np.arange(640) / 5)
    soundfile.write(root / "test" / f"tiny-2_sub_video_0_speaker{speaker}.wav", wav.ravel(), 16000, subtype="FLOAT")
  return load_dualtalk(root, "test")


def encode(wav, frames):
  return wav.reshape(frames, -1).mean(axis=1, keepdims=True)


def test_cases(source):
  cases = ConversationCases(source, encode, find_closures=lambda name: [(name[-1], 0.1, 0.2)])
  assert len(cases) == 2
  first, second = cases
  assert (first.clip.name, second.clip.name) == ("tiny-2_sub_video_0_speaker1", "tiny-2_sub_video_0_speaker2")
  np.testing.assert_array_equal(second.clip.motion_b, tiny_world.make_motion(6))
  np.testing.assert_array_equal(first.clip.motion_b, second.clip.motion_a)
  np.testing.assert_array_equal(first.speaking, second.partner_speaking)
  frames = np.arange(60)
  np.testing.assert_array_equal(first.speaking, frames < 21)  # A frame more: the window has three.
  np.testing.assert_array_equal(second.speaking, frames >= 29)
  assert first.closures == [("1", 0.1, 0.2)] and second.closures == [("2", 0.1, 0.2)]
  np.testing.assert_array_equal(first.kinds["listening"], frames >= 29)
  assert ConversationCases(source, encode)[0].closures == ()


def test_relations_of_triplets_and_clips_by_name(source):
  read = []
  watched = lambda wav, frames: read.append(frames) or encode(wav, frames)
  triplet = Triplet("tiny-2_sub_video_0", "test", 2, "capture", 0, 0, 60, np.array([1, 0], np.int32))
  cases = ConversationCases(source, watched, [triplet])
  (clip,) = cases.clips({"tiny-2_sub_video_0_speaker2", "another"})
  assert clip.name.endswith("speaker2") and clip.relation.tolist() == [1, 0] and len(read) == 2
