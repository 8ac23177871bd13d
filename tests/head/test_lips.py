"""Lips of the head: which vertices they are, how far apart, against the whole head's vertices."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import tiny_world
from rsatalker_jax.data.demo.expressions import COLUMN
from rsatalker_jax.head import LipOpening, find_lips, head_vertices, load_head, make_lip_opening, pose_for

HEAD = pathlib.Path(__file__).resolve().parents[2] / "assets" / "head" / "demo_head.npz"


@pytest.fixture(scope="module")
def head():
  return load_head(HEAD)


def test_opening_is_that_of_the_whole_head(head):
  motion = np.random.default_rng(0).uniform(0, 0.3, (3, 56)).astype(np.float32)
  opening = jax.jit(make_lip_opening(head))
  values = opening(motion)
  straight = motion.copy()
  straight[:, 53:] = 0
  pose = jax.jit(lambda frame: head_vertices(head, shape=jnp.zeros(0), **pose_for(frame)))
  lips = np.stack([pose(frame) for frame in straight])[:, np.asarray(head.lip_vertices), 1]
  np.testing.assert_allclose(values, lips[:, 0] - lips[:, 1], atol=1e-7)  # float32 of coordinates near 0.1 m.
  turned = motion.copy()
  turned[:, 53:] += 0.4
  np.testing.assert_array_equal(opening(turned), values)


def test_lips_are_found_where_the_file_does_not_name_them(head, tmp_path):
  unnamed = dataclasses.replace(head, lip_vertices=None)
  found = find_lips(unnamed)
  named = np.asarray(head.v_template)[np.asarray(head.lip_vertices)]
  # The same lips: within the lips' thickness of those named, and opening alike.
  assert np.linalg.norm(np.asarray(head.v_template)[found] - named, axis=1).max() < 6e-3
  jaw = np.zeros((20, 56), np.float32)
  jaw[:, COLUMN["jawOpening"]] = np.linspace(0, 0.3, 20)
  ours, theirs = (jax.jit(make_lip_opening(h))(jaw) for h in (unnamed, head))
  assert scipy.stats.pearsonr(ours, theirs)[0] > 0.99
  tiny_world.write_head(tmp_path / "ball.npz")
  assert find_lips(load_head(tmp_path / "ball.npz")) is None


def test_opening_has_the_gradient_of_finite_differences(head):
  opening = jax.jit(make_lip_opening(head))
  motion = jnp.zeros((2, 56)).at[:, COLUMN["jawOpening"]].set(jnp.array([0.0, 0.2]))
  gradient = jax.jit(jax.grad(lambda x: opening(x).sum()))(motion)[:, 50]
  step = 1e-2  # float32 of 0.1 m: smaller steps drown in rounding.
  nudge = jnp.zeros(56).at[50].set(step)
  finite = (opening(motion + nudge) - opening(motion - nudge)) / (2 * step)
  np.testing.assert_allclose(gradient, finite, rtol=2e-2)
  assert (np.abs(gradient) > 1e-2).all()  # Metres per radian: the jaw is 10 cm long.


@pytest.mark.parametrize("frames", [1, 1024, 2500])
def test_openings_of_long_motions_are_those_of_their_frames(head, frames):
  opening = make_lip_opening(head)
  motion = (0.1 * np.random.default_rng(0).normal(size=(frames, 56))).astype(np.float32)
  calls = []
  measured = LipOpening(lambda chunk: calls.append(chunk.shape) or opening(chunk))(motion)
  assert measured.shape == (frames,) and set(calls) == {(1024, 56)}  # One shape, whatever the length.
  chosen = np.unique([0, frames // 2, frames - 1])
  np.testing.assert_allclose(measured[chosen], [opening(motion[i]) for i in chosen], atol=1e-7)
  assert frames == 1 or np.std(measured) > 1e-4
