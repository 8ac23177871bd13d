"""The speaker-listener motion generator (Sec. 3.3)."""

from rsatalker_jax.motion.baselines import DualTalkGenerator, make_generator
from rsatalker_jax.motion.generator import Generator, MotionConfig, MotionGenerator
from rsatalker_jax.motion.streaming import MotionStream

__all__ = ["DualTalkGenerator", "Generator", "MotionConfig", "MotionGenerator", "MotionStream", "make_generator"]
