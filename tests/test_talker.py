"""The modules put together: what the generator is told, under which names, and in which units."""

import dataclasses
import types

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import splat_kernels
from motion_configs import motion_config
from rsatalker_jax import sharding
from rsatalker_jax.avatar import Avatar, Gaussians
from rsatalker_jax.data.pipeline import MotionClip
from rsatalker_jax.motion import MotionConfig
from rsatalker_jax.motion.generator import normalization
from rsatalker_jax.runs import TrainedRun
from rsatalker_jax.social import GaussianOffsetNet, MotionSocialNet, RelationEmbedding, SocialModule
from rsatalker_jax.talker import Talker, render_on_mesh
from splat_kernels import RenderOutput


class Telling(nn.Module):
  """A generator whose output's first numbers are what it was given."""

  samples = False

  config: MotionConfig

  @nn.compact
  def __call__(self, speech_a, motion_a, speech_b, social, *, num_frames=None, deterministic=True):
    mean, std = normalization(self)
    scale = self.param("scale", nn.initializers.ones, ())
    told = jnp.broadcast_to(social[..., None, :2], (*speech_a.shape[:-1], 2))
    parts = [speech_a[..., :1], motion_a[..., :1], speech_b[..., :1], told, jnp.full_like(speech_a[..., :1], deterministic)]
    out = scale * jnp.concatenate(parts, axis=-1)
    out = jnp.pad(out, [(0, 0)] * (out.ndim - 1) + [(0, 56 - out.shape[-1])])
    return mean + std * out


def make_talker(knows_relation=True):
  config = motion_config(features=4, heads=2)
  social = SocialModule(4, relation_features=3, hidden=5)
  head = types.SimpleNamespace(basis="flame2020")
  talker = Talker(head, social, Telling(config), None, knows_relation, None, None, None)
  params = {"social": social.init(jax.random.key(0), jnp.zeros(2, jnp.int32)), "generator": {"params": {"scale": jnp.ones(())}}}
  buffers = {"generator": {"motion_mean": jnp.arange(56.0), "motion_std": jnp.full(56, 2.0), "lip_std": jnp.ones(())}}
  return talker, params, buffers


def make_clip(frames=5, relation=(1, 0)):
  r = np.random.default_rng(0)
  draw = lambda width: r.normal(size=(frames, width)).astype(np.float32)
  return MotionClip("c_speaker2", draw(3), draw(56), draw(3), draw(56), np.array(relation, np.int32), basis="flame2020")


def social_by_hand(params, relation):
  """s = MotionSocialNet(q), q the two embeddings (Sec. 3.5)."""
  inner = params["social"]["params"]
  query = RelationEmbedding(3).apply({"params": inner["relation_embedding"]}, jnp.asarray(relation))
  return MotionSocialNet(4, 5).apply({"params": inner["motion_social_net"]}, query)


def test_the_generator_gets_each_input_under_its_name():
  talker, params, buffers = make_talker()
  clip = make_clip()
  inputs = dict(speech_a=clip.speech_a, motion_a=clip.motion_a, speech_b=clip.speech_b, relation=jnp.asarray(clip.relation))
  social = social_by_hand(params, clip.relation)
  for motion, quiet in ((talker.generate(params, buffers, inputs), 1.0),
                        (talker.generate(params, buffers, inputs, dropout=jax.random.key(0)), 0.0)):  # fmt: skip
    raw = (np.asarray(motion) - np.arange(56)) / 2
    np.testing.assert_allclose(raw[:, 0], clip.speech_a[:, 0], atol=1e-5)
    np.testing.assert_allclose(raw[:, 1], clip.motion_a[:, 0], atol=1e-5)
    np.testing.assert_allclose(raw[:, 2], clip.speech_b[:, 0], atol=1e-5)
    np.testing.assert_allclose(raw[:, 3:5], np.tile(social[:2], (5, 1)), atol=1e-5)
    np.testing.assert_allclose(raw[:, 5], quiet, atol=1e-5)
  np.testing.assert_allclose(talker.generate_clip(params, buffers, clip), talker.generate(params, buffers, inputs), atol=1e-5)
  assert len(talker.generate_clip(params, buffers, clip)) == 5


def test_relations_are_told_apart_and_without_the_module_are_unknown():
  talker, params, _ = make_talker()
  features = {tuple(r): talker.social_feature(params, jnp.array(r)) for r in ([0, 0], [0, 1], [1, 0], [1, 1], [-1, -1])}
  for relation, feature in features.items():
    np.testing.assert_allclose(feature, social_by_hand(params, relation), atol=1e-6)
  assert len(np.unique(np.round(list(features.values()), 6), axis=0)) == 5
  deaf, _, _ = make_talker(knows_relation=False)
  for relation in features:
    np.testing.assert_array_equal(deaf.social_feature(params, jnp.array(relation)), features[-1, -1])


def test_offsets_see_the_standardised_motion_of_their_frame():
  talker, params, buffers = make_talker()
  net = GaussianOffsetNet(num_anchors=2, hidden=3, inputs=("relation", "time", "motion"))
  relation, times, motion = np.array([1, 0]), np.array([7, 9]), np.arange(112.0).reshape(2, 56)
  query = jnp.concatenate([params["social"]["params"]["relation_embedding"][name][i] for name, i in (("blood", 1), ("equal", 0))])
  standardised = (motion - np.arange(56)) / 2
  made = net.init(jax.random.key(3), query, jnp.zeros(()), jnp.zeros(56))
  made = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(4), x.shape), made)
  talker = dataclasses.replace(talker, offset_net=net)
  run = TrainedRun(None, talker, params | {"offsets": made}, buffers, "joint:3")
  offsets = run.gaussian_offsets(relation, times, motion)(np.array([1, 0]))
  for row, frame in enumerate((1, 0)):
    expected = net.apply(made, query, jnp.float32(times[frame]), jnp.float32(standardised[frame]))
    np.testing.assert_allclose(offsets[row], expected, rtol=1e-4, atol=1e-5)


def test_a_run_is_told_relations_once_its_social_module_is_trained():
  talker, params, buffers = make_talker()
  clip = make_clip(relation=(1, 1))
  config = lambda social_module: types.SimpleNamespace(motion=types.SimpleNamespace(social_module=social_module))
  shown = lambda run: (run.generate(clip)[0, 3:5] - np.arange(3, 5)) / 2
  told, unknown = (social_by_hand(params, relation)[:2] for relation in ((1, 1), (-1, -1)))
  np.testing.assert_allclose(shown(TrainedRun(config(True), talker, params, buffers, "motion:4")), told, atol=1e-5)
  np.testing.assert_allclose(shown(TrainedRun(config(False), talker, params, buffers, "motion:4")), unknown, atol=1e-5)
  joint = TrainedRun(config(False), talker, params | {"offsets": {}}, buffers, "motion:4 joint:3")
  np.testing.assert_allclose(shown(joint), told, atol=1e-5)


@dataclasses.dataclass(frozen=True)
class WideRenderer(Talker):
  """Draws through many arrays of all Gaussians, and says how many frames it is given."""

  def render(self, avatar, flame, camera, offsets=None, probes=None):
    seen.append(len(flame["jaw"]))
    means = avatar.gaussians.means + offsets.mean(axis=1, keepdims=True) + flame["jaw"][:, None] + probes["places"]
    for number in range(8):
      means = jnp.sin(means @ jnp.roll(jnp.eye(3), number, axis=0))  # Products are not computed twice unless told.
    zeros = jnp.zeros(len(means), jnp.int32)
    image = camera.intrinsics[:, :1, :1, None] * means.mean(axis=1)[:, None, None]
    return RenderOutput(image=image, alpha=image[..., 0], depth=None, radii=zeros, nonfinite=zeros, intersections=zeros, overflow=zeros)


seen = []


@pytest.mark.parametrize("per_frame", [False, True])
def test_frames_drawn_in_turn_are_the_same_in_the_memory_of_fewer(per_frame):
  frames, num, r = 12, 500, np.random.default_rng(0)
  draw = lambda *shape: r.normal(size=shape).astype(np.float32)
  lead = (frames,) * per_frame
  rest = [jnp.ones(lead + shape) for shape in ((num, 4), (num, 3), (num,), (num, 1, 3))]
  avatar = Avatar(gaussians=Gaussians(draw(*lead, num, 3), *rest), binding=jnp.zeros((*lead, num), jnp.int32), shape=jnp.zeros((*lead, 2)))
  camera = splat_kernels.Camera(draw(frames, 4, 4), draw(frames, 3, 3), 8, 8)
  given = {"jaw": draw(frames, 3)}, camera, draw(frames, 5, 3), {"places": draw(frames, num, 3)}
  talker, mesh = WideRenderer(*[None] * 8), sharding.make_mesh(2, 1)
  found, memory = {}, {}
  for at_once in (0, 1, 4, 6):  # Of the six frames that each of two devices has.
    seen.clear()
    render = render_on_mesh(talker, mesh, avatar_per_frame=per_frame, frames_at_once=at_once)

    def loss(means, flame, offsets, probes):
      shown = avatar.replace(gaussians=dataclasses.replace(avatar.gaussians, means=means))
      image = render(shown, flame, camera, offsets, probes).image
      return jnp.sum(image**2), image

    arguments = avatar.gaussians.means, given[0], *given[2:]
    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True)).lower(*arguments).compile()
    found[at_once], memory[at_once] = compiled(*arguments), compiled.memory_analysis().temp_size_in_bytes
    assert set(seen) == {{0: 6, 1: 1, 4: 3, 6: 6}[at_once]}  # As many as divide six, and no more than asked for.
    chex.assert_trees_all_close(found[at_once], found[0], rtol=1e-5, atol=1e-6)
  assert memory[1] < memory[4] < memory[6] and memory[1] < memory[0] / 3
