"""From pixels through rasterizer, binding and head back into the generator and both social networks (Eq. 13)."""

import jax
import jax.numpy as jnp
import numpy as np

import splat_kernels
from motion_configs import motion_config
from rsatalker_jax.avatar import init_avatar, render_frames
from rsatalker_jax.head import pose_for
from rsatalker_jax.motion import MotionGenerator
from rsatalker_jax.social import GaussianOffsetNet, SocialModule
from test_avatar import front_camera, make_head

FRAMES = 4


def test_pixels_reach_the_generator_and_the_social_networks():
  """By central differences in float64, along a random direction in each network's parameters.

  Steps are so small that no two Gaussians swap places, which would be a jump. Softmax and decoder of the generator are
  float32 inside: of a difference by such a step 1e-3 is noise.
  """
  with jax.enable_x64(True):
    to64 = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)
    head, camera = to64(make_head()), to64(front_camera(16))
    avatar = to64(init_avatar(head, jnp.zeros(3), init_scale=0.6))
    r = np.random.default_rng(0)
    colored = avatar.gaussians.replace(sh=jnp.array(r.normal(size=avatar.gaussians.sh.shape)))
    avatar = avatar.replace(gaussians=colored)
    config = motion_config(
        features=8, heads=2, reach=2, encoder_layers=1, decoder_layers=1, speech_hidden=8,
        social_norm=True, dropout=0.0, dtype="float64",
    )  # fmt: skip
    generator, offset_net = MotionGenerator(config), GaussianOffsetNet(head.faces.shape[0], hidden=4)
    social_module, relation = SocialModule(8, relation_features=4, hidden=8), jnp.array([1, 0])
    speech_a, speech_b = (jnp.array(r.normal(size=(FRAMES, 3))) for _ in range(2))
    given = speech_a, jnp.array(0.2 * r.normal(size=(FRAMES, 56))), speech_b
    params = to64(generator.init(jax.random.key(0), *given, jnp.zeros(8)))["params"]
    social = to64(social_module.init(jax.random.key(2), relation))["params"]
    statistics = {"motion_mean": jnp.zeros(56), "motion_std": jnp.full(56, 0.2)}
    # Layers that start at zero would hide what lies before them.
    noisy = lambda tree, size: jax.tree.map(lambda x: x + size * r.normal(size=x.shape), tree)
    query = jnp.zeros((1, 8))
    offsets = noisy(to64(offset_net.init(jax.random.key(1), query, jnp.zeros(1), jnp.zeros((1, 56))))["params"], 1e-3)
    weights = jnp.array(r.normal(size=(FRAMES, 16, 16, 3)))
    # No cut-offs within reach of the differences: they would make the rendering a little discontinuous.
    raster = splat_kernels.Config(alpha_min=1e-12, transmittance_min=1e-12)

    def value(inputs):
      variables = {"params": inputs["generator"], "statistics": statistics}
      motion = generator.apply(variables, *given, social_module.apply({"params": inputs["social"]}, relation))
      query = social_module.apply({"params": inputs["social"]}, relation, method="query")
      c = offset_net.apply({"params": inputs["offsets"]}, jnp.tile(query, (FRAMES, 1)), jnp.arange(float(FRAMES)), motion)
      flame = pose_for(motion)
      output = render_frames(avatar, head, flame, c, camera, config=raster, implementation="reference")
      return jnp.sum(weights * output.image)

    inputs = {"generator": noisy(params, 0.1), "social": noisy(social, 0.1), "offsets": offsets}
    assert set(social) == {"relation_embedding", "motion_social_net"}
    value_and_gradient = jax.jit(jax.value_and_grad(value))
    _, gradient = value_and_gradient(inputs)
    for name, x in inputs.items():
      direction = jax.tree.map(lambda leaf: jnp.array(r.normal(size=leaf.shape)), x)
      step, tolerance = (1e-6, 1e-5) if name == "offsets" else (1e-5, 3e-3)
      move = lambda sign: {**inputs, name: jax.tree.map(lambda a, d: a + sign * step * d, x, direction)}
      ends = [value_and_gradient(move(sign))[0] for sign in (1, -1)]
      analytic = sum(float(jnp.sum(g * d)) for g, d in zip(jax.tree.leaves(gradient[name]), jax.tree.leaves(direction)))
      assert abs(analytic) > 1e-4, name
      np.testing.assert_allclose(analytic, (ends[0] - ends[1]) / (2 * step), rtol=tolerance, err_msg=name)
