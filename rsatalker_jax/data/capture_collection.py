"""Captures of several people as one source of frames, each with the number of the person it shows."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from rsatalker_jax.data.captures import Capture, load_capture
from rsatalker_jax.errors import InputError


class CaptureCollection:
  """Random access to the frames of all captures, one capture after another; a source for `grain.MapDataset.source`.

  `collection[i]` is the capture's dict (see `Capture`) with `identity`, int32: whose frame it is, from 0 in the order
  of `names`. So a batch can hold frames of different people.

  Attributes:
    captures: the captures.
    names: of the people.
    width, height: of every image, in pixels.
    shapes: identity coefficients (P, S), filled up with zeros where a capture has fewer.
    static_offsets: vertex offsets (P, V, 3), zero for people without; None if nobody has any.
    num_expression: E, of every frame.
    identities: of every item, int32.
  """

  def __init__(self, captures: Sequence[Capture], names: Sequence[str]):
    first = captures[0]
    self.captures, self.names = tuple(captures), tuple(names)
    self.width, self.height = first.width, first.height
    self.num_expression = first.num_expression
    width = max(len(capture.shape) for capture in captures)
    self.shapes = np.stack([np.pad(capture.shape, (0, width - len(capture.shape))) for capture in captures])
    self.static_offsets = _stack_offsets(captures)
    counts = [len(capture) for capture in captures]
    self.identities = np.repeat(np.arange(len(captures), dtype=np.int32), counts)
    self._starts = np.cumsum([0, *counts])

  def __len__(self) -> int:
    return len(self.identities)

  def __getitem__(self, i: int) -> dict:
    i = range(len(self))[i]  # From the end too, and an IndexError beyond it.
    identity = self.identities[i]
    return self.captures[identity][i - int(self._starts[identity])] | {"identity": identity}


def load_captures(
    roots: Sequence[str | os.PathLike],
    split: str,
    *,
    background: tuple[float, float, float] | None = None,
    num_vertices: int | None = None,
    num_expression: int | None = None,
    names: Sequence[str] | None = None,
) -> CaptureCollection:
  """Opens one split of the captures of several people, one folder for each person.

  Args:
    roots: the captures' folders; they must be tracked with the same head model and have images of one size.
    names: of the people; None: `name_people`.
    split, background, num_vertices, num_expression: see `load_capture`.

  Raises:
    InputError: no folder or one twice, or captures that do not fit each other; and see `load_capture`.
  """
  if isinstance(roots, (str, os.PathLike)):
    raise InputError("captures", "", repr(str(roots)), "a list of folders, one for each person")
  roots = [pathlib.Path(root) for root in roots]
  if not roots:
    raise InputError("captures", "", "none", "a folder for each person")
  resolved = [root.resolve() for root in roots]
  for number, root in enumerate(resolved):
    if root in resolved[:number]:
      raise InputError(roots[number], "", "the same folder twice", "a folder for each person")
  options = dict(background=background, num_vertices=num_vertices, num_expression=num_expression)
  captures = [load_capture(root, split, **options) for root in roots]
  first = captures[0]
  for capture in captures[1:]:
    for key, found, expected in (
        ("w, h", (capture.width, capture.height), (first.width, first.height)),
        ("expr", capture.num_expression, first.num_expression),
        ("basis", capture.basis, first.basis),
    ):
      if found != expected:
        raise InputError(capture.root, key, found, f"{expected} as in {first.root}")
  return CaptureCollection(captures, name_people(roots) if names is None else names)


def _stack_offsets(captures: Sequence[Capture]) -> Float[np.ndarray, "P V 3"] | None:
  tracked = [capture for capture in captures if capture.static_offset is not None]
  if not tracked:
    return None
  count = len(tracked[0].static_offset)
  for capture in tracked:
    if len(capture.static_offset) != count:
      found = f"{len(capture.static_offset)} vertices"
      raise InputError(capture.root, "static_offset", found, f"{count} as in {tracked[0].root}")
  zeros = np.zeros((count, 3), np.float32)
  return np.stack([zeros if capture.static_offset is None else capture.static_offset for capture in captures])


def name_people(roots: Sequence[str | os.PathLike]) -> list[str]:
  """Names of the people in captures: the last parts of their folders' paths, as few as tell all apart."""
  paths = [pathlib.Path(root).resolve() for root in roots]
  for parts in range(1, max(len(path.parts) for path in paths) + 1):
    names = ["/".join(path.parts[-parts:]) for path in paths]
    if len(set(names)) == len(names):
      break
  return names
