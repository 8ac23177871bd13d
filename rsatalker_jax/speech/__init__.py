"""Speech encoders (features of a 16 kHz voice) and their cache."""

from rsatalker_jax.speech.cache import SpeechFeatures, StoredFeatures, logmel_features, wav2vec2_features, whisper_features
from rsatalker_jax.speech.checkpoints import load_wav2vec2, load_whisper
from rsatalker_jax.speech.logmel import LogMel, to_frames
from rsatalker_jax.speech.wav2vec2 import Wav2Vec2
from rsatalker_jax.speech.whisper import Whisper

__all__ = [
    "LogMel",
    "SpeechFeatures",
    "StoredFeatures",
    "Wav2Vec2",
    "Whisper",
    "load_wav2vec2",
    "load_whisper",
    "logmel_features",
    "to_frames",
    "wav2vec2_features",
    "whisper_features",
]
