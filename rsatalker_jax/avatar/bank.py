"""A bank of identities: the avatars of many people as one batched `Avatar`, whose first dimension P numbers the people.

A batch of frames may show different people: each frame takes its own person's Gaussians by number, and its gradient
reaches that person's Gaussians alone. The people's dimension is what a device mesh splits (training/sharding.py).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

import splat_kernels
from rsatalker_jax.avatar.gaussians import Avatar
from rsatalker_jax.avatar.render import render_frames
from rsatalker_jax.head import HeadModel


def stack_avatars(avatars: Sequence[Avatar]) -> Avatar:
  """One bank of avatars bound to the same head model; every array gets a leading dimension P.

  Shape coefficients are filled up with zeros to the longest, and people without vertex offsets get zeros where others
  have some: neither changes anybody.

  Args:
    avatars: with equal numbers of Gaussians and degrees of spherical harmonics.

  Raises:
    ValueError: there is none, or an array of one has another shape than the first's.
  """
  if not avatars:
    raise ValueError("a bank needs at least one avatar")
  longest = max(avatar.shape.shape[-1] for avatar in avatars)
  offset = next((avatar.static_offset for avatar in avatars if avatar.static_offset is not None), None)

  def like_the_others(avatar: Avatar) -> Avatar:
    shape = jnp.pad(avatar.shape, (0, longest - avatar.shape.shape[-1]))
    own = avatar.static_offset
    if own is None and offset is not None:
      own = jnp.zeros_like(offset)
    return dataclasses.replace(avatar, shape=shape, static_offset=own)

  avatars = [like_the_others(avatar) for avatar in avatars]
  shapes_of = lambda avatar: {
      jax.tree_util.keystr(path): tuple(x.shape) for path, x in jax.tree_util.tree_leaves_with_path(avatar)
  }
  expected = shapes_of(avatars[0])
  for number, avatar in enumerate(avatars):
    found = shapes_of(avatar)
    for name in sorted(found.keys() | expected.keys()):
      if found.get(name) != expected.get(name):
        raise ValueError(f"avatar {number}{name}: {found.get(name)}, but the first one's is {expected.get(name)}")
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *avatars)


def join_bank(avatar: Avatar, bank: Avatar) -> Avatar:
  """The bank with one more person in front. Errors as of `stack_avatars`."""
  return stack_avatars([avatar, *(jax.tree.map(lambda x: x[i], bank) for i in range(num_people(bank)))])


def num_people(bank: Avatar) -> int:
  """P, the number of people in a bank."""
  return bank.binding.shape[0]


def select(bank: Avatar, identity: int | Int[Array, "B"]) -> Avatar:
  """People of a bank by their numbers.

  Args:
    bank: of P people.
    identity: one number for one person's `Avatar`, as for export, or B of them for an `Avatar` with B in front. In
      traced code numbers must be within 0 to P - 1: there nobody can complain.

  Raises:
    IndexError: a number that is nobody's.
  """
  people = num_people(bank)
  if not isinstance(identity, Tracer):
    numbers = np.asarray(identity)
    if np.any((numbers < 0) | (numbers >= people)):
      raise IndexError(f"{identity=} must be within 0 to {people - 1}, the people of the bank")
  return jax.tree.map(lambda x: x[identity], bank)


def render_bank_frames(
    bank: Avatar,
    head: HeadModel,
    identity: Int[Array, "B"],
    flame: dict[str, Float[Array, "B _"]],
    offsets: Float[Array, "B F 3"] | None,
    camera: splat_kernels.Camera,
    **options: Any,
) -> splat_kernels.RenderOutput:
  """Renders frames of different people.

  Args:
    bank: of P people.
    head: the head model that all are bound to.
    identity: whom each frame shows.
    flame, offsets, camera, options: as in `render_frames`.

  Returns:
    The rasterizer's output with leading dimension B.
  """
  return render_frames(select(bank, identity), head, flame, offsets, camera, **options)
