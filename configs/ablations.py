"""What RSATalker is compared with, and its own parts left out one at a time: variants of the other configs.

    make compare                                              all baselines on the embedded conversations, three seeds each
    make compare VARIANTS="full plain_eq5" SEEDS=0            some of them
    python train.py --config=configs/demo.py:dualtalk ...     one

All are trained by the same loop, on the same batches, for the same steps, by the same rates.
"""

from ml_collections import ConfigDict

# By name: the row's title in tables, and what is other than in the config itself.
VARIANTS = {
    "full": ("RSATalker, stage 1", {}),
    # Baselines.
    "no_relation": ("RSATalker without the social module", {"social.enabled": False}),
    "dualtalk": ("DualTalk (BiLSTM)", {"generator.architecture": "dualtalk", "generator.encoder_layers": 3}),
    "speaker_only": (
        "speaker-only (FaceFormer's setting)",
        {"generator.use_partner": False, "social.enabled": False},
    ),
    "listener_only": (
        "listener-only (L2L's setting)",
        {"generator.use_own_speech": False, "social.enabled": False},
    ),
    # Eq. 5 and what s can do.
    "plain_eq5": ("Eq. 4 and 5 as written: no residual path", {"generator.residual": False}),
    "query_time": ("Eq. 5, queries with an encoding of t", {"generator.query_time": True}),
    "no_social_norm": ("s in the query of Eq. 5 alone", {"generator.social_norm": False}),
    # The loss.
    "paper_loss": ("Eq. 9 as written: one norm, no velocity, no lips", {"motion.loss.plain_norm": True}),
    "no_lips": ("without the lips' term", {"motion.loss.lips": 0.0}),
    # Seeing no future, to answer while a conversation goes on (docs/streaming.md).
    "causal": ("RSATalker, causal", {"generator.causal": True, "speech.causal": True}),
    # How Gaussians come to where they are needed (stage 2; benchmarks/avatar_quality.py). Several people's avatars are
    # trained with "fixed".
    "fixed": ("RSATalker, no density control", {"density.way": "none", "gaussians.capacity": None}),
    "mcmc": ("RSATalker, MCMC", {"density.way": "mcmc"}),
}


def apply_variant(config: ConfigDict, name: str) -> ConfigDict:
  """The config as a variant has it; an empty name leaves it as it is.

  Raises:
    ValueError: there is none of that name.
  """
  if name and name not in VARIANTS:
    raise ValueError(f"found {name!r} behind the colon, expected {', '.join(VARIANTS)} or nothing")
  if name:
    title, overrides = VARIANTS[name]
    config.update_from_flattened_dict({"evaluation.title": title, **overrides})
  return config
