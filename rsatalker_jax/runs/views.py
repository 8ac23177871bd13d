"""How a run's person is looked at where nobody filmed the conversation, and whom they talk to."""

import pathlib

import numpy as np

import splat_kernels
from rsatalker_jax.avatar import Avatar, wear
from rsatalker_jax.data.captured_people import find_speakers
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


def name_speaker(run: TrainedRun, file: str) -> str:
  """Whose voice a file is, <conversation>_speaker<n>.wav, as the run's people table says; "" where it does not."""
  name, _, speaker = pathlib.Path(file).stem.rpartition("_speaker")
  speakers = find_speakers(run.config.data).get(name)
  return "" if speakers is None else {"1": speakers.first, "2": speakers.second}.get(speaker, "")


def choose_people(
    run: TrainedRun, person_a: str | None, person_b: str | None, names: tuple[str, str] = ("", "")
) -> tuple[TrainedRun | None, TrainedRun]:
  """The run with the avatars of A and of B: of who is named, else of who speaks, else B is the first of the run's people and A
  another of them. A is None where there is no other, or where somebody speaks of whom the run has no avatar (`partner_avatar`).

  Args:
    run: trained.
    person_a, person_b: as --person_a and --person have them.
    names: of A and B in the conversation, "" for somebody unknown.

  Raises:
    InputError: the run has nobody who is called so.
  """
  numbers: list[int | None] = []
  for flag, wanted, name in (("--person_a", person_a, names[0]), ("--person", person_b, names[1])):
    if wanted is not None and wanted not in run.names:
      raise InputError(flag, "", wanted, f"one of {', '.join(run.names)}")
    chosen = name if wanted is None else wanted
    numbers.append(run.names.index(chosen) if chosen in run.names else None)
  another = lambda taken: next((number for number in range(len(run.names)) if number != taken), None)
  a, b = numbers
  if b is None:
    b = another(a) or 0
  if person_a is None and (a == b or not names[0]):
    a = another(b)
  return None if a is None else run.of_person(a), run.of_person(b)


def partner_avatar(run: TrainedRun, name: str = "") -> Avatar:
  """The trained Gaussians on another identity of the head model, so that the two who talk are not twins: on that of `name`, if
  the head knows somebody called so, else on the one nearest to the run's person."""
  head = run.talker.head
  if head.identities is None:
    return run.avatar
  own, identities = np.asarray(run.avatar.shape), np.asarray(head.identities)
  width = min(len(own), identities.shape[1])
  distances = np.linalg.norm(identities[:, :width] - own[:width], axis=1)
  number = head.identity_names.index(name) if name in head.identity_names else int(np.argsort(distances)[1])
  other = np.zeros_like(own)
  other[:width] = identities[number, :width]
  return wear(run.avatar, head, other)
