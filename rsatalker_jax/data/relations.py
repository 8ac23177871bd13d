"""The relations table."""

from rsatalker_jax.data.dualtalk import read_relations

__all__ = ["read_relations"]
