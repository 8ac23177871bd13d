"""Image-based talking heads that the avatar is compared with: from speech, head pose and eyes straight to pictures."""

from ml_collections import ConfigDict

from rsatalker_jax.baselines.image.audio import speech_around
from rsatalker_jax.baselines.image.boxes import Boxes, crop
from rsatalker_jax.baselines.image.ernerf import ErNerf, SyncTalk
from rsatalker_jax.baselines.image.film import DrivenFilm, make_drive
from rsatalker_jax.baselines.image.gaussiantalker import GaussianTalker
from rsatalker_jax.baselines.image.method import Drive, ImageMethod, Subject
from rsatalker_jax.baselines.image.pose import joint_transforms

# By the config's `avatar.method`; "gaussians" is none of them, but the avatar of `rsatalker_jax.avatar`.
METHODS: dict[str, type[ImageMethod]] = {"gaussiantalker": GaussianTalker, "ernerf": ErNerf, "synctalk": SyncTalk}


def make_image_method(config: ConfigDict, subject: Subject) -> ImageMethod:
  """The method that the config's `avatar.method` names, for a person."""
  return METHODS[config.avatar.method](config, subject)


__all__ = [
    "METHODS", "Boxes", "Drive", "DrivenFilm", "ImageMethod", "Subject", "crop", "joint_transforms", "make_drive", "make_image_method",
    "speech_around",
]  # fmt: skip
