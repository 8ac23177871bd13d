"""Seamless Interaction joined with UniLS-Talk: both voices, both faces' FLAME motion and how the two are related.

UniLS-Talk has voices and motion, in pairs; the official data set has relations, and speech with times, and video. File ids,
which both keep, join them. docs/seamless.md tells what comes from where.
"""

from rsatalker_jax.data.seamless.joining import Selection, join_conversations
from rsatalker_jax.data.seamless.source import SeamlessSource, load_seamless, present_seamless_splits
from rsatalker_jax.data.seamless.writing import describe_report, write_conversations

__all__ = [
    "SeamlessSource",
    "Selection",
    "describe_report",
    "join_conversations",
    "load_seamless",
    "present_seamless_splits",
    "write_conversations",
]
