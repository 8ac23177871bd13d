"""Speech encoders (50 Hz features from a 16 kHz voice) and their cache."""

from rsatalker_jax.speech.cache import SpeechFeatures, StoredFeatures, logmel_features, wav2vec2_features
from rsatalker_jax.speech.checkpoints import load_wav2vec2
from rsatalker_jax.speech.logmel import LogMel, to_frames
from rsatalker_jax.speech.wav2vec2 import Wav2Vec2

__all__ = [
    "LogMel",
    "SpeechFeatures",
    "StoredFeatures",
    "Wav2Vec2",
    "load_wav2vec2",
    "logmel_features",
    "to_frames",
    "wav2vec2_features",
]
