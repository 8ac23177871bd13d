import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial

import splat_kernels
from rsatalker_jax import avatar as avatar_lib
from rsatalker_jax.avatar import Gaussians, init_avatar
from rsatalker_jax.head import HeadModel, pose_for

pose_gaussians = jax.jit(avatar_lib.pose_gaussians)
render_frames = jax.jit(avatar_lib.render_frames, static_argnames=("config", "implementation"))


def make_head(seed: int = 0) -> HeadModel:
  """A ball of 10 cm whose lower half hangs on the jaw, with FLAME's parameters."""
  r = np.random.default_rng(seed)
  points = r.normal(size=(60, 3))
  points *= 0.1 / np.linalg.norm(points, axis=-1, keepdims=True)
  faces = scipy.spatial.ConvexHull(points).simplices
  corners = points[faces]
  inward = np.einsum("fi,fi->f", np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), corners[:, 0]) < 0
  faces[inward] = faces[inward][:, ::-1]
  weights = np.zeros((60, 5))
  weights[:, 2] = points[:, 1] < -0.02
  weights[:, 1] = 1 - weights[:, 2]
  regressor = np.full((5, 60), 1 / 60)
  region = (points[faces].mean(1)[:, 1] > 0.05).astype(np.int32)
  return HeadModel(
      v_template=jnp.array(points, jnp.float32),
      shape_directions=jnp.array(0.01 * r.normal(size=(60, 3, 3)), jnp.float32),
      expression_directions=jnp.array(0.01 * r.normal(size=(60, 3, 50)), jnp.float32),
      pose_directions=jnp.zeros((60, 3, 36)),
      joint_regressor=jnp.array(regressor, jnp.float32),
      weights=jnp.array(weights, jnp.float32),
      faces=jnp.array(faces, jnp.int32),
      region_masks=jnp.array([region == 0, region == 1]),
      region_names=("skin", "scalp"),
  )


@pytest.fixture(scope="module")
def head():
  return make_head()


def front_camera(size=24):
  world_to_camera = np.diag([1.0, -1, -1, 1])  # The face looks along +z, the camera back along -z.
  world_to_camera[2, 3] = 0.5
  focal = 50 * size / 24
  intrinsics = np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
  return splat_kernels.Camera(jnp.array(world_to_camera, jnp.float32), jnp.array(intrinsics, jnp.float32), size, size)


def random_motion(frames=2, seed=0):
  return pose_for(jnp.array(0.3 * np.random.default_rng(seed).normal(size=(frames, 56)), jnp.float32))


def rest(frames=1):
  return pose_for(jnp.zeros((frames, 56)))


def test_starts_as_the_paper_says(head):
  avatar = init_avatar(head, jnp.zeros(3))
  faces = head.faces.shape[0]
  np.testing.assert_array_equal(avatar.binding, np.arange(faces))
  np.testing.assert_array_equal(avatar.gaussians.means, 0)
  np.testing.assert_array_equal(avatar.gaussians.log_scales, 0)
  np.testing.assert_array_equal(avatar.gaussians.quats, np.tile([1, 0, 0, 0], (faces, 1)))
  np.testing.assert_allclose(jax.nn.sigmoid(avatar.gaussians.opacity_logits), 0.1, rtol=1e-6)
  assert init_avatar(head, jnp.zeros(3), sh_degree=2).gaussians.sh.shape == (faces, 9, 3)


def test_further_gaussians_lie_on_their_triangles_in_proportion_to_area(head):
  faces = head.faces.shape[0]
  avatar = init_avatar(head, jnp.array([1.0, -1, 0]), num_gaussians=faces + 5000)
  np.testing.assert_array_equal(avatar.binding[:faces], np.arange(faces))  # Anchors first, untouched.
  np.testing.assert_array_equal(avatar.gaussians.means[:faces], 0)
  means, _, scales = pose_gaussians(avatar, head, jax.tree.map(lambda x: x[0], rest()))
  v = np.asarray(head.v_template + head.shape_directions @ np.array([1.0, -1, 0]))
  corners = v[np.asarray(head.faces)][np.asarray(avatar.binding)]
  barycentric = np.stack([np.linalg.lstsq(c.T, m, rcond=None)[0] for c, m in zip(corners, np.asarray(means))])
  np.testing.assert_allclose(barycentric.sum(1), 1, atol=1e-3)
  assert barycentric.min() > -1e-3
  area = np.linalg.norm(np.cross(v[head.faces[:, 1]] - v[head.faces[:, 0]], v[head.faces[:, 2]] - v[head.faces[:, 0]]), axis=-1)
  counts = np.bincount(avatar.binding[faces:], minlength=faces)
  np.testing.assert_allclose(counts, 5000 * area / area.sum(), atol=1.001)
  # A triangle's Gaussians share its area: their squared scales add up to what one alone would have.
  total = np.bincount(avatar.binding, weights=scales[:, 0] ** 2, minlength=faces)
  alone = pose_gaussians(init_avatar(head, jnp.array([1.0, -1, 0])), head, jax.tree.map(lambda x: x[0], rest()))[2]
  np.testing.assert_allclose(total, alone[:, 0] ** 2, rtol=1e-4)


def test_free_slots_are_never_drawn(head):
  avatar = init_avatar(head, jnp.zeros(3), capacity=head.faces.shape[0] + 7)
  assert int(jnp.sum(avatar.binding == avatar_lib.FREE)) == 7
  opaque = avatar.gaussians.replace(opacity_logits=jnp.full_like(avatar.gaussians.opacity_logits, 5.0))
  avatar = avatar.replace(gaussians=opaque)
  with_slots = render(avatar, head, rest(2), None, None)
  without = avatar_lib.drop_free_slots(avatar)
  assert len(without.binding) == head.faces.shape[0]
  np.testing.assert_array_equal(with_slots.radii[:, -7:], 0)
  np.testing.assert_array_equal(with_slots.image, render(without, head, rest(2), None, None).image)
  with pytest.raises(ValueError, match="gaussians.capacity: found 3, expected None or at least"):
    init_avatar(head, jnp.zeros(3), capacity=3)


def test_degrees_of_harmonics_join_one_by_one(head):
  avatar = init_avatar(head, jnp.zeros(3), sh_degree=3)
  avatar = avatar.replace(gaussians=avatar.gaussians.replace(sh=jnp.ones_like(avatar.gaussians.sh)))
  kept = [int(jnp.sum(avatar_lib.up_to_degree(avatar, jnp.array(d)).gaussians.sh[0, :, 0])) for d in range(5)]
  assert kept == [1, 4, 9, 16, 16]


def test_region_density_steers_the_further_gaussians(head):
  faces = head.faces.shape[0]
  only_scalp = init_avatar(head, jnp.zeros(3), num_gaussians=faces + 100, region_density={"skin": 0.0})
  assert np.asarray(head.region_masks)[1, only_scalp.binding[faces:]].all()
  with pytest.raises(ValueError, match="region: found 'hair', expected one of skin, scalp"):
    init_avatar(head, jnp.zeros(3), num_gaussians=faces + 1, region_density={"hair": 2.0})
  with pytest.raises(ValueError, match="gaussians.num_gaussians: found 3, expected at least"):
    init_avatar(head, jnp.zeros(3), num_gaussians=3)


def render(avatar, head, flame, offsets, background):
  return render_frames(
      avatar, head, flame, offsets, front_camera(), background=background, implementation="reference"
  )


def test_every_frame_is_rendered_by_itself(head):
  """Frames in another order give the same images in that order, and differ among themselves."""
  avatar = init_avatar(head, jnp.zeros(3), sh_degree=1, init_scale=0.3)
  sh = 0.3 * jax.random.normal(jax.random.key(0), avatar.gaussians.sh.shape)
  avatar = avatar.replace(gaussians=avatar.gaussians.replace(sh=sh))
  offsets = 0.01 * jax.random.normal(jax.random.key(1), (3, head.faces.shape[0], 3))
  background = jnp.array([[0.0, 0, 0], [1, 1, 1], [0, 1, 0]])
  frames = (random_motion(3), offsets, background)
  forward = render(avatar, head, *frames)
  backward = render(avatar, head, *jax.tree.map(lambda x: x[::-1], frames))
  assert forward.image.shape == (3, 24, 24, 3)
  np.testing.assert_allclose(forward.image, backward.image[::-1], atol=1e-6)
  np.testing.assert_allclose(forward.image[:, 0, 0], background, atol=0.05)  # The head hardly reaches the corner.
  assert np.abs(np.diff(forward.alpha, axis=0)).max() > 0.05


def test_head_stands_upright_in_the_picture(head):
  avatar = init_avatar(head, jnp.zeros(3), init_scale=0.5, sh_degree=1)
  means, _, _ = pose_gaussians(avatar, head, jax.tree.map(lambda x: x[0], rest()))
  color = jnp.where(means > 0.0, 1.0, -1.0) * jnp.array([1.0, 1.0, 0.0])  # Red: subject's left. Green: up.
  sh = jnp.zeros((len(means), 4, 3)).at[:, 0].set(color)
  avatar = avatar.replace(gaussians=avatar.gaussians.replace(sh=sh, opacity_logits=jnp.full(len(means), 3.0)))
  image = render(avatar, head, rest(3), jnp.zeros((3, head.faces.shape[0], 3)), jnp.zeros((3, 3))).image[0]
  assert image[:12, :, 1].sum() > 2 * image[12:, :, 1].sum()
  assert image[:, 12:, 0].sum() > 2 * image[:, :12, 0].sum()  # Facing us, their left is on our right.


def test_offsets_translate_whole_anchors(head):
  avatar = init_avatar(head, jnp.zeros(3), num_gaussians=head.faces.shape[0] + 5000)
  flame = jax.tree.map(lambda x: x[0], random_motion())
  offsets = jax.random.normal(jax.random.key(0), (head.faces.shape[0], 3))
  plain, moved = pose_gaussians(avatar, head, flame), pose_gaussians(avatar, head, flame, offsets)
  np.testing.assert_allclose(moved[0] - plain[0], offsets[avatar.binding], atol=1e-6)
  np.testing.assert_array_equal(moved[1], plain[1])


def test_pixels_reach_every_parameter_and_the_motion(head):
  """By central differences in float64, along a random direction for each input."""
  with jax.enable_x64(True):
    to64 = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)
    head, camera = to64(make_head()), to64(front_camera(16))
    avatar = to64(init_avatar(head, jnp.zeros(3), init_scale=0.6, sh_degree=1))
    r = np.random.default_rng(0)
    noisy = jax.tree.map(lambda x: x + 0.1 * r.normal(size=x.shape), avatar.gaussians)
    inputs = dict(
        **{f.name: getattr(noisy, f.name) for f in dataclasses.fields(noisy)},
        motion=jnp.array(0.2 * r.normal(size=(2, 56))),
        offsets=jnp.array(0.002 * r.normal(size=(2, head.faces.shape[0], 3))),
        shape=jnp.array(r.normal(size=3)),
    )
    weights = jnp.array(r.normal(size=(2, 16, 16, 3)))
    # No cut-offs within reach of the differences: they would make the rendering a little discontinuous.
    config = splat_kernels.Config(alpha_min=1e-12, transmittance_min=1e-12)

    @jax.jit
    def value(inputs):
      gaussians = Gaussians(**{f.name: inputs[f.name] for f in dataclasses.fields(Gaussians)})
      person = avatar.replace(gaussians=gaussians, shape=inputs["shape"])
      output = render_frames(
          person, head, pose_for(inputs["motion"]), inputs["offsets"], camera, config=config, implementation="reference"
      )
      return jnp.sum(weights * output.image)

    gradient = jax.jit(jax.grad(value))(inputs)
    for name, x in inputs.items():
      direction = jnp.array(r.normal(size=x.shape))
      step = 1e-6
      ends = [value({**inputs, name: x + sign * step * direction}) for sign in (1, -1)]
      analytic = float(jnp.sum(gradient[name] * direction))
      assert abs(analytic) > 1e-6, name
      np.testing.assert_allclose(analytic, (ends[0] - ends[1]) / (2 * step), rtol=1e-4, err_msg=name)
