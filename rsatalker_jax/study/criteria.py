"""What participants rate: nine sub-criteria in three dimensions, and Eq. 14, which weighs them."""

import dataclasses
import hashlib

import numpy as np
from jaxtyping import Float

LEAST, MOST = 0, 100
# What the two ends of every scale are called.
ENDS = ("not at all", "fully")


@dataclasses.dataclass(frozen=True)
class Criterion:
  """Attributes:
    key: its name in files.
    title: its column in Table 3.
    question: the statement that participants read, and agree with not at all (0) or fully (100).
  """

  key: str
  title: str
  question: str


@dataclasses.dataclass(frozen=True)
class Dimension:
  """Attributes:
    key, title: as of a criterion.
    name: what participants read.
    weight: in Eq. 14.
    criteria: whose mean it is.
  """

  key: str
  title: str
  name: str
  weight: float
  criteria: tuple[Criterion, ...]


DIMENSIONS = (
    Dimension("realism", "Realism", "Realism", 0.25, (
        Criterion("lip_sync", "Lip Sync", "The lips move in time with the speech; they rest while the person listens."),
        Criterion("expression_naturalness", "Expr. Naturalness", "The facial expressions look natural."),
        Criterion("visual_realism", "Visual Realism", "The picture of the face looks real."),
    )),
    Dimension("fluency", "Fluency", "Fluency", 0.25, (
        Criterion("motion_smoothness", "Motion Smoothness", "Head and face move smoothly, without jerks."),
        Criterion("temporal_consistency", "Temporal Consistency", "The picture is steady, without flicker or sudden changes."),
        Criterion("long_term_stability", "Long-term Stability", "The end of the video is as good as its beginning."),
    )),
    Dimension("sra", "SRA", "Social relationship", 0.5, (
        Criterion("role_consistency", "Role Consistency", "The behaviour suits how the two people are related."),
        Criterion("emotional_tone", "Emotional Tone", "The emotions suit what is said, and to whom."),
        Criterion(
            "interaction_dynamics", "Interaction Dynamics", "Nods, glances and smiles answer the other person at the right time."
        ),
    )),
)
CRITERIA = tuple(criterion for dimension in DIMENSIONS for criterion in dimension.criteria)
KEYS = tuple(criterion.key for criterion in CRITERIA)
# Another wording is another question: answers to both do not belong into one table.
VERSION = hashlib.sha256(repr((DIMENSIONS, ENDS, LEAST, MOST)).encode()).hexdigest()[:8]

# Table 3 of the paper: nine sub-criteria in the order above, and as printed the three means and the total. Its 24
# participants saw other videos.
PUBLISHED = {
    "ER-NeRF": ((65.1, 58.3, 62.7, 60.2, 58.5, 55.4, 40.6, 42.1, 38.4), (62.0, 58.0, 40.4, 50.2)),
    "SyncTalk": ((85.2, 72.4, 74.1, 70.3, 65.7, 68.2, 48.6, 50.2, 47.3), (77.2, 68.1, 48.7, 60.7)),
    "GaussianTalker": ((80.5, 78.6, 86.2, 75.8, 72.5, 70.9, 55.4, 58.7, 60.3), (81.8, 73.1, 58.1, 67.8)),
    "RSATalker": ((90.7, 86.4, 88.2, 88.5, 86.1, 85.6, 84.7, 82.3, 86.5), (88.4, 86.7, 84.5, 86.1)),
}


def dimension_scores(scores: Float[np.ndarray, "*n 9"]) -> Float[np.ndarray, "*n 3"]:
  """Realism, Fluency and SRA: means of three sub-criteria each, which stand in the order of `CRITERIA`."""
  return scores.reshape(*scores.shape[:-1], 3, 3).mean(axis=-1)


def total_score(dimensions: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n"]:
  """Eq. 14: S_total = 0.25 S_Realism + 0.25 S_Fluency + 0.5 S_SRA."""
  return np.asarray(dimensions @ np.array([dimension.weight for dimension in DIMENSIONS]))
