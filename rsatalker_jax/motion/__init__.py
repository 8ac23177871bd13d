"""The speaker-listener motion generator (Sec. 3.3)."""

from rsatalker_jax.motion.baselines import DualTalkGenerator, make_generator
from rsatalker_jax.motion.generator import MotionConfig, MotionGenerator

__all__ = ["DualTalkGenerator", "MotionConfig", "MotionGenerator", "make_generator"]
