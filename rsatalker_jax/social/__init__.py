"""Social relations: their names, their embeddings and the two networks they steer (Sec. 3.5)."""

from rsatalker_jax.social.networks import (
    GaussianOffsetNet,
    MotionSocialNet,
    RelationEmbedding,
    SocialModule,
    orthogonality_penalty,
)
from rsatalker_jax.social.relation import RELATIONS, format_relation, parse_relation

__all__ = [
    "RELATIONS",
    "GaussianOffsetNet",
    "MotionSocialNet",
    "RelationEmbedding",
    "SocialModule",
    "format_relation",
    "orthogonality_penalty",
    "parse_relation",
]
