"""The speaker-listener motion generator (Sec. 3.3)."""

from rsatalker_jax.motion.generator import Generator, MotionConfig, MotionGenerator, can, longest_lookahead
from rsatalker_jax.motion.stream_batch import StreamBatch
from rsatalker_jax.motion.streaming import MotionStream

__all__ = ["Generator", "MotionConfig", "MotionGenerator", "MotionStream", "StreamBatch", "can", "longest_lookahead"]
