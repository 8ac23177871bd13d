"""The speaker-listener motion generator (Sec. 3.3)."""

from rsatalker_jax.motion.generator import MotionConfig, MotionGenerator

__all__ = ["MotionConfig", "MotionGenerator"]
