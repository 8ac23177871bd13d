"""How a run's person is looked at where nobody filmed the conversation, and whom they talk to."""

import dataclasses

import numpy as np

import splat_kernels
from rsatalker_jax.avatar import Avatar
from rsatalker_jax.data.captures import load_capture
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import FlamePose, rotation_matrix
from rsatalker_jax.runs.trained import TrainedRun


def front_view(run: TrainedRun, size: int, camera: int | None = None) -> tuple[splat_kernels.Camera, FlamePose]:
  """A camera of the capture at the wanted height, and how the filmed body stood before it at the capture's first moment.

  Args:
    run: with its capture.
    size: height of the pictures in pixels; their width comes out even.
    camera: its index in the capture; None takes the one that the face looks at.

  Raises:
    InputError: no such camera, or the capture is missing or damaged.
  """
  capture = load_capture(run.data_path("capture"), "train")
  indices = np.unique(capture.camera_indices)
  if camera is not None and camera not in indices:
    raise InputError("--camera", "", camera, f"one of {', '.join(map(str, indices))}, the cameras of {capture.root}")
  firsts = [int(np.flatnonzero(capture.camera_indices == index)[0]) for index in (indices if camera is None else [camera])]
  item = max((capture[first] for first in firsts), key=_looked_at)
  view = splat_kernels.Camera(item["world_to_camera"], item["intrinsics"], capture.width, capture.height)
  return zoom(view, size), item["flame"]


def zoom(camera: splat_kernels.Camera, size: int) -> splat_kernels.Camera:
  """The same view in pictures of another height in pixels, whose width comes out even."""
  factor = size / camera.height
  intrinsics = camera.intrinsics * np.array([[factor], [factor], [1]], np.float32)
  return splat_kernels.Camera(camera.world_to_camera, intrinsics, round(camera.width * factor / 2) * 2, size)


def _looked_at(item: dict) -> float:
  """How straight the face of a captured frame looks into its camera: 1 straight, -1 away."""
  flame, view = item["flame"], item["world_to_camera"]
  forward = rotation_matrix(flame["rotation"]) @ rotation_matrix(flame["neck"]) @ np.array([0.0, 0.0, 1.0])
  to_camera = -view[:3, :3].T @ view[:3, 3] - flame["translation"]
  return float(forward @ to_camera / np.linalg.norm(to_camera))


def partner_avatar(run: TrainedRun) -> Avatar:
  """The trained Gaussians on another identity of the head model, so that the two who talk are not twins."""
  identities = run.talker.head.identities
  if identities is None:
    return run.avatar
  shape = np.asarray(run.avatar.shape)
  width = min(len(shape), identities.shape[1])
  distances = np.linalg.norm(np.asarray(identities)[:, :width] - shape[:width], axis=1)
  other = np.zeros_like(shape)
  other[:width] = np.asarray(identities)[np.argsort(distances)[1], :width]
  return dataclasses.replace(run.avatar, shape=other, static_offset=None)
