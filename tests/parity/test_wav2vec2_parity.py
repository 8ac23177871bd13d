"""Wav2Vec 2.0 at 25 fps against PyTorch's transformers, with DualTalk's interpolation between its two halves."""

import numpy as np
import pytest

import oracles
from rsatalker_jax.speech import load_wav2vec2
from rsatalker_jax.speech.wav2vec2 import encode_voice
from speech.wav2vec2_checkpoints import FAMILIES, make_wav, write_checkpoint

pytestmark = oracles.needs("torch")


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_of_video_frames(tmp_path, family):
  import torch
  from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model

  folder, wav, frames = write_checkpoint(tmp_path / family, family), make_wav(3 * 16000 + 77), 75
  model = Wav2Vec2Model.from_pretrained(str(folder), attn_implementation="eager").eval()
  extractor = Wav2Vec2FeatureExtractor.from_pretrained(str(folder))
  with torch.no_grad():
    features = model.feature_extractor(extractor(wav, sampling_rate=16000, return_tensors="pt")["input_values"])
    features = torch.nn.functional.interpolate(features, size=frames, align_corners=True, mode="linear")
    expected = model.encoder(model.feature_projection(features.transpose(1, 2))[0]).last_hidden_state[0].numpy()
  found = encode_voice(*load_wav2vec2(folder), wav, num_frames=frames)
  assert found.shape == expected.shape == (frames, 32)
  np.testing.assert_allclose(found, expected, atol=1e-4)
