"""Speech encoders (50 Hz features from a 16 kHz voice) and their cache."""

from rsatalker_jax.speech.cache import make_speech_encoder
from rsatalker_jax.speech.logmel import LogMel, to_frames

__all__ = ["LogMel", "make_speech_encoder", "to_frames"]
