"""Plain settings of a motion generator, of which tests change what they are about."""

from rsatalker_jax.motion import MotionConfig

PLAIN = dict(
    architecture="rsatalker", features=128, heads=4, reach=25, encoder_layers=2, decoder_layers=2, mlp_ratio=2, speech_hidden=128,
    speech_layers=1, speech_kernel=9, motion_kernel=1, motion_stride=1, dropout=0.1, use_partner=True, use_own_speech=True,
    residual=True, query_time=False, social_norm=False, causal=False, own_lookahead=0, remat="none", dtype="float32",
)  # fmt: skip


def motion_config(**changes) -> MotionConfig:
  return MotionConfig(**PLAIN | changes)
