"""Avatars of several people in one batch, against each rendered alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avatar.test_avatar import front_camera, make_head, random_motion
from rsatalker_jax.avatar import init_avatar, num_people, render_bank_frames, render_frames, select, stack_avatars


@pytest.fixture(scope="module")
def head():
  return make_head()


@pytest.fixture(scope="module")
def people(head):
  """Three people of unequal looks, of whom different things are known."""
  identities = (
      ([1.0, -1.0, 0.5], None),
      ([2.0], 0.01 * jax.random.normal(jax.random.key(9), head.v_template.shape)),
      ([0.0, 3.0], None),
  )
  avatars = []
  for number, (shape, offset) in enumerate(identities):
    avatar = init_avatar(head, jnp.array(shape), static_offset=offset, num_gaussians=150, init_scale=0.4, seed=number)
    noisy = lambda x: x + 0.5 * jax.random.normal(jax.random.key(number), x.shape)
    looks = {name: noisy(getattr(avatar.gaussians, name)) for name in ("sh", "log_scales")}
    avatars.append(avatar.replace(gaussians=avatar.gaussians.replace(**looks)))
  return avatars


def test_a_person_comes_out_of_the_bank_as_they_went_in(head, people):
  bank = stack_avatars(people)
  assert num_people(bank) == 3 and bank.gaussians.sh.shape == (3, 150, 1, 3) and bank.shape.shape == (3, 3)
  for number, person in enumerate(people):
    found = select(bank, number)
    jax.tree.map(np.testing.assert_array_equal, found.gaussians, person.gaussians)
    np.testing.assert_array_equal(found.binding, person.binding)
    np.testing.assert_array_equal(found.shape, np.pad(person.shape, (0, 3 - len(person.shape))))
    np.testing.assert_array_equal(found.static_offset, 0 if person.static_offset is None else person.static_offset)
  with pytest.raises(IndexError, match="identity=3 must be within 0 to 2"):
    select(bank, 3)
  with pytest.raises(IndexError, match="must be within 0 to 2"):
    select(bank, np.array([0, -1]))


def test_people_that_do_not_fit_are_named(head, people):
  other = init_avatar(head, jnp.zeros(3), num_gaussians=151)
  with pytest.raises(ValueError, match=r"avatar 1.binding: \(151,\), but the first one's is \(150,\)"):
    stack_avatars([people[0], other])
  with pytest.raises(ValueError, match="at least one"):
    stack_avatars([])


def test_frames_of_different_people_and_whom_their_gradients_reach(head, people):
  """A batch equals its frames alone, each with its person; and nobody else's Gaussians get a gradient."""
  bank = stack_avatars(people)
  identity, flame = np.array([2, 0, 2]), random_motion(3)
  offsets = 0.01 * jax.random.normal(jax.random.key(0), (3, head.faces.shape[0], 3))
  weights = jax.random.normal(jax.random.key(1), (3, 16, 16, 3))
  options = dict(background=jnp.ones(3), implementation="reference")

  def of_bank(gaussians):
    people = bank.replace(gaussians=gaussians)
    image = render_bank_frames(people, head, identity, flame, offsets, front_camera(16), **options).image
    return jnp.sum(weights * image), image

  (_, images), gradient = jax.jit(jax.value_and_grad(of_bank, has_aux=True))(bank.gaussians)
  alone = jax.jit(lambda *arguments: render_frames(*arguments, front_camera(16), **options).image[0])
  for frame, number in enumerate(identity):
    one = lambda x: x[frame : frame + 1]
    image = alone(select(bank, int(number)), head, jax.tree.map(one, flame), one(offsets))
    # The same sums in another program: a few roundings of values up to 1.
    np.testing.assert_allclose(images[frame], image, atol=1e-5)
  for name, x in jax.tree_util.tree_leaves_with_path(gradient):
    np.testing.assert_array_equal(x[1], 0)
    assert np.abs(x[0]).max() > 1e-3 and np.abs(x[2]).max() > 1e-3, name
  assert np.abs(images[0] - images[2]).max() > 0.05
