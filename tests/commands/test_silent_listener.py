"""Somebody who only listens: generating takes one silent voice of two (the paper's Fig. 7)."""

import numpy as np
import pytest
import soundfile

import tiny_world
from rsatalker_jax.data.dualtalk import read_conversation
from rsatalker_jax.errors import InputError


@pytest.fixture
def files(tmp_path):
  tiny_world.write_voice(tmp_path / "speaks.wav", 1)
  soundfile.write(tmp_path / "silent.wav", np.zeros(tiny_world.FRAMES * 640, np.float32), 16000)
  tiny_world.write_npz(tmp_path / "a.npz", tiny_world.make_motion(1))
  return tmp_path


@pytest.mark.parametrize("voices", [("speaks.wav", "silent.wav"), ("silent.wav", "speaks.wav")])
def test_one_of_the_two_may_be_silent(files, voices):
  conversation, _ = read_conversation(files / voices[0], files / "a.npz", files / voices[1], "unknown")
  heard = {voices[0]: conversation.speech_a, voices[1]: conversation.speech_b}
  assert np.abs(heard["speaks.wav"]).max() > 0.1 and not heard["silent.wav"].any()
  assert len(conversation.speech_a) == len(conversation.speech_b) == tiny_world.FRAMES * 640


def test_both_may_not(files):
  with pytest.raises(InputError, match="silent.wav: peak: found silence in both voices"):
    read_conversation(files / "silent.wav", files / "a.npz", files / "silent.wav", "unknown")
