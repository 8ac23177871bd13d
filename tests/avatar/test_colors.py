"""First colours, from pictures whose colours say where their pixels are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import splat_kernels
from rsatalker_jax.avatar import FREE, face_colors, init_avatar, paint, triangle_frames
from rsatalker_jax.head import pose_for
from test_avatar import front_camera, make_head

SIZE = 64


@pytest.fixture(scope="module")
def head():
  return make_head()


def make_frame(mask):
  camera = front_camera(SIZE)
  y, x = np.mgrid[:SIZE, :SIZE] + 0.5
  image = np.stack([x / SIZE, y / SIZE, np.full((SIZE, SIZE), 0.25)], axis=-1).astype(np.float32)
  flame = {name: np.asarray(value[0]) for name, value in pose_for(jnp.zeros((1, 56))).items()}
  poses = dict(world_to_camera=np.asarray(camera.world_to_camera), intrinsics=np.asarray(camera.intrinsics))
  return dict(image=image, mask=mask.astype(np.float32), flame=flame, **poses)


def test_triangles_take_the_colour_they_lie_on_and_unseen_ones_that_of_their_region(head):
  mask = np.ones((SIZE, SIZE))
  mask[:, : SIZE // 2] = 0  # The left half of the picture is not the person.
  colors = face_colors(head, jnp.zeros(3), [make_frame(mask), make_frame(mask)])
  _, _, centre = triangle_frames(head.v_template, head.faces)
  ones = jnp.ones((len(centre), 3))
  projected = jax.jit(splat_kernels.project)(centre, jnp.ones((len(centre), 4)), 0.001 * ones, ones[:, 0], front_camera(SIZE))
  corners = np.asarray(head.v_template)[np.asarray(head.faces)]
  normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
  towards = np.array([0, 0, 0.5]) - np.asarray(centre)  # The camera is 0.5 m before the head.
  x, y = np.asarray(projected.means2d).T
  seen = (np.sum(normal * towards, axis=1) > 0) & (np.floor(x) >= SIZE // 2)
  assert 5 < seen.sum() < len(seen) - 5
  np.testing.assert_allclose(colors[seen, 0] * SIZE, x[seen], atol=0.51)  # A pixel's colour is that of its centre.
  np.testing.assert_allclose(colors[seen, 1] * SIZE, y[seen], atol=0.51)
  for region in np.asarray(head.region_masks):
    beside = colors[seen & region].mean(axis=0)
    hidden = colors[~seen & region]
    np.testing.assert_allclose(hidden, np.broadcast_to(beside, hidden.shape), atol=1e-5)


def test_painted_avatars_show_their_colours(head):
  avatar = init_avatar(head, jnp.zeros(3), sh_degree=1, capacity=head.faces.shape[0] + 2)
  colors = np.random.default_rng(0).uniform(size=(head.faces.shape[0], 3)).astype(np.float32)
  sh = np.asarray(paint(avatar, colors).gaussians.sh)
  bound = np.asarray(avatar.binding) != FREE
  # Y_0^0 = 1 / (2 sqrt(pi))
  np.testing.assert_allclose(sh[bound, 0] / (2 * np.sqrt(np.pi)) + 0.5, colors, atol=1e-6)
  assert not np.any(sh[:, 1:])
