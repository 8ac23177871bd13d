"""The motion generator: the paper's wiring, its switches, any length, any batch shape."""

import dataclasses

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from motion_configs import motion_config
from rsatalker_jax.motion import MotionGenerator, generator

KEY = jax.random.key(0)
SMALL = motion_config(features=16, heads=2, reach=5, encoder_layers=1, decoder_layers=1, speech_kernel=3)


def make_social(relation, features=16):
  """Some s for each relation, (..., 2) -> (..., features)."""
  table = jax.random.normal(jax.random.key(8), (2, 2, features))
  return table[relation[..., 0], relation[..., 1]]


def make_inputs(frames=12, batch=(), speech=10):
  keys = jax.random.split(jax.random.key(7), 3)
  return dict(
      speech_a=jax.random.normal(keys[0], (*batch, frames, speech)),
      motion_a=jax.random.normal(keys[1], (*batch, frames, 56)),
      speech_b=jax.random.normal(keys[2], (*batch, frames, speech)),
      social=make_social(jnp.broadcast_to(jnp.array([1, 0]), (*batch, 2))),
  )


def make_model(config=SMALL, inputs=None):
  """A generator whose output layer is not near zero, so that differences show."""
  model = MotionGenerator(config)
  params = jax.jit(model.init)(KEY, **(inputs or make_inputs()))
  head = params["params"]["motion_decoder"]["motion"]
  head["kernel"] = jax.random.normal(jax.random.key(1), head["kernel"].shape)
  return model, params


def test_shapes_and_batches():
  model, params = make_model()
  inputs = make_inputs(batch=(2, 3))
  out = jax.jit(model.apply)(params, **inputs)
  assert out.shape == (2, 3, 12, 56) and out.dtype == jnp.float32
  one = jax.jit(model.apply)(params, **jax.tree.map(lambda x: x[1, 2], inputs))
  np.testing.assert_allclose(out[1, 2], one, atol=1e-5)


def test_parts_are_the_papers():
  _, params = make_model()
  assert set(params["params"]) == {
      "speech_adapter", "motion_encoder", "partner_norm", "partner_attention", "social_fusion", "motion_decoder",
  }


def test_equation_4_queries_are_speech_keys_and_values_are_motion():
  """Without the residual path, f_A is the attention's output alone; shuffling motion beyond reach leaves it."""
  config = dataclasses.replace(SMALL, residual=False)
  model, params = make_model(config)
  inputs = make_inputs()
  bound = model.bind(params)
  a_a = bound.speech_adapter(inputs["speech_a"])
  m_a = bound.motion_encoder(inputs["motion_a"])
  assert a_a.shape == m_a.shape == (12, 16)
  f_a = bound.partner_attention(bound.partner_norm(a_a), m_a)
  social = inputs["social"]
  fused = bound.social_fusion(f_a, bound.speech_adapter(inputs["speech_b"]), social)
  np.testing.assert_allclose(bound(**inputs), bound.motion_decoder(fused, social), atol=1e-6)


def test_equation_5_query_is_the_same_s_in_every_frame():
  """With one memory vector everywhere, attention is that vector, so that z does not depend on the frame."""
  config = dataclasses.replace(SMALL, residual=False, encoder_layers=0)
  fusion = generator.SocialFusion(config)
  same = jnp.ones((9, 16)), -jnp.ones((9, 16))
  params = fusion.init(KEY, *same, jnp.ones(16))
  z = fusion.apply(params, *same, jnp.arange(16.0))
  assert z.shape == (9, 16)
  np.testing.assert_allclose(z, jnp.broadcast_to(z[0], z.shape), atol=1e-5)
  # What is attended to is one vector: without a residual path s, whatever it is, has nothing to choose and is nowhere else.
  np.testing.assert_allclose(z, fusion.apply(params, *same, jnp.zeros(16)), atol=1e-5)
  # With it, s and the encoder's features pass by.
  residual = generator.SocialFusion(dataclasses.replace(config, residual=True))
  encoded = residual.apply(params, *same, jnp.arange(16.0)) - z - jnp.arange(16.0)
  np.testing.assert_allclose(encoded, residual.apply(params, *same, jnp.zeros(16)) - z, atol=1e-4)


def test_relation_changes_the_motion():
  model, params = make_model()
  inputs = make_inputs(batch=(4,))
  inputs = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), inputs)
  inputs["social"] = make_social(jnp.array([[0, 0], [0, 1], [1, 0], [1, 1]]))
  out = jax.device_get(jax.jit(model.apply)(params, **inputs))
  for i in range(4):
    for j in range(i):
      assert np.abs(out[i] - out[j]).max() > 1e-2


@pytest.mark.parametrize("name", ["speech_a", "motion_a", "speech_b"])
def test_every_input_is_used(name):
  model, params = make_model()
  inputs = make_inputs()
  changed = inputs | {name: inputs[name] + jax.random.normal(KEY, inputs[name].shape)}
  assert float(jnp.abs(model.apply(params, **inputs) - model.apply(params, **changed)).max()) > 1e-2


def test_ablations_cut_exactly_their_input():
  inputs = make_inputs()
  other = make_inputs() | {"social": make_social(jnp.array([0, 1]))}
  alone = inputs | {"speech_a": inputs["speech_a"] + 1, "motion_a": inputs["motion_a"] + 1}

  model, params = make_model(dataclasses.replace(SMALL, use_partner=False))
  np.testing.assert_array_equal(model.apply(params, **inputs), model.apply(params, **alone))
  assert not np.allclose(model.apply(params, **inputs), model.apply(params, **other))

  heard = inputs | {"speech_b": inputs["speech_b"] + 1}
  model, params = make_model(dataclasses.replace(SMALL, use_own_speech=False))
  np.testing.assert_array_equal(model.apply(params, **inputs), model.apply(params, **heard))
  assert not np.allclose(model.apply(params, **inputs), model.apply(params, **alone))


def test_causal_form_sees_no_future():
  """What comes after frame t changes no bit of the output up to t, and every input's frame t changes frame t."""
  config = dataclasses.replace(
      SMALL, causal=True, speech_layers=2, motion_kernel=5, motion_stride=2, social_norm=True, query_time=True
  )
  model, params = make_model(config)
  inputs = make_inputs(frames=23)
  apply = jax.jit(model.apply)
  whole = np.asarray(apply(params, **inputs))
  for t in (0, 4, 5, 16):
    later = {name: x if name == "social" else x.at[t + 1 :].add(1.0) for name, x in inputs.items()}
    np.testing.assert_array_equal(apply(params, **later)[: t + 1], whole[: t + 1])
    for name in ("speech_a", "motion_a", "speech_b"):
      now = apply(params, **inputs | {name: inputs[name].at[t].add(1.0)})
      assert np.abs(now[t] - whole[t]).max() > 1e-4
  bias = params["params"]["partner_attention"]["distance_bias"]
  assert bias.shape == (2, 6)  # No parameters for distances that are never seen.


def test_long_clips_equal_their_windows():
  """Frames far enough from a cut do not know whether they were computed in a window or in the whole."""
  model, params = make_model()
  inputs = make_inputs(frames=150)
  apply = jax.jit(model.apply)
  whole = apply(params, **inputs)
  part = apply(params, **{k: v[60:110] if v.ndim == 2 else v for k, v in inputs.items()})
  margin = 1 + 4 * 5  # The convolution's half and four attentions' reach.
  np.testing.assert_allclose(whole[60 + margin : 110 - margin], part[margin:-margin], atol=1e-4)


def test_statistics_scale_input_and_output():
  mean, std = np.linspace(-1, 1, 56), np.linspace(0.5, 2, 56)
  model, params = make_model()
  scaled = params | {"statistics": {"motion_mean": jnp.float32(mean), "motion_std": jnp.float32(std)}}
  inputs = make_inputs()
  raw = inputs | {"motion_a": inputs["motion_a"] * std + mean}
  np.testing.assert_allclose(model.apply(scaled, **raw), model.apply(params, **inputs) * std + mean, atol=1e-4)
  # Nobody is without statistics in silence.
  with pytest.raises(flax.errors.ScopeCollectionNotFound, match="statistics"):
    model.apply({"params": params["params"]}, **inputs)


def test_output_starts_near_the_mean():
  model, inputs = MotionGenerator(SMALL), make_inputs()
  statistics = {"motion_mean": jnp.full(56, 0.3), "motion_std": jnp.ones(56)}
  out = model.apply(model.init(KEY, **inputs) | {"statistics": statistics}, **inputs)
  np.testing.assert_allclose(out, 0.3, atol=0.2)


def test_bfloat16_is_close_and_trains_float32_parameters():
  model, params = make_model()
  half = MotionGenerator(dataclasses.replace(SMALL, dtype="bfloat16"))
  inputs = make_inputs()
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(jax.eval_shape(half.init, KEY, **inputs)))

  def make_loss(model):
    def loss(params):
      motion = model.apply(params, **inputs)
      return jnp.mean(motion**2), motion

    return jax.jit(jax.value_and_grad(loss, has_aux=True))

  half_loss = make_loss(half)
  (_, exact), exact_gradient = make_loss(model)(params)
  (before, rough), gradient = half_loss(params)
  assert rough.dtype == jnp.float32
  # bfloat16 has 8 bits: half a percent per operation, a few dozen operations deep.
  assert float(jnp.sqrt(jnp.mean((exact - rough) ** 2)) / exact.std()) < 0.05
  flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
  a, b = flat(gradient), flat(exact_gradient)
  assert a.dtype == np.float32 and a @ b > 0.99 * np.linalg.norm(a) * np.linalg.norm(b)
  assert half_loss(jax.tree.map(lambda x, g: x - 1e-3 * g, params, gradient))[0][0] < before


def test_motion_encoder_sees_its_kernel():
  """The encoder's frame t sees kernel frames of motion, stride apart, and no others."""
  encoder = generator.MotionEncoder(dataclasses.replace(SMALL, motion_kernel=5, motion_stride=2))
  motion = jax.random.normal(KEY, (15, 56))
  params = jax.jit(encoder.init)(KEY, motion)
  gradient = jax.jit(jax.grad(lambda motion: encoder.apply(params, motion)[7].max()))(motion)
  np.testing.assert_array_equal(np.flatnonzero(np.abs(gradient).max(axis=1)), [3, 5, 7, 9, 11])


def test_social_norm_is_a_switch():
  """With it s reaches the layers' norms too: the relation can change gains, not only add to the motion."""
  modulations = lambda params: [path for path, _ in jax.tree_util.tree_leaves_with_path(params)
                                if "modulation" in jax.tree_util.keystr(path)]
  assert not modulations(make_model()[1])
  model, params = make_model(dataclasses.replace(SMALL, social_norm=True))
  assert len(modulations(params)) == 2 * (2 * 2 + 1)  # Kernel and bias of two norms in two layers and of the motion encoder's.
  assert model.apply(params, **make_inputs()).shape == (12, 56)


def test_query_time_is_a_switch():
  model, params = make_model(dataclasses.replace(SMALL, query_time=True))
  assert "time" in params["params"]["social_fusion"]
  assert model.apply(params, **make_inputs()).shape == (12, 56)


def test_initialisation_is_determined_by_the_key():
  same = [MotionGenerator(SMALL).init(jax.random.key(5), **make_inputs()) for _ in range(2)]
  jax.tree.map(np.testing.assert_array_equal, *same)


def test_it_learns_to_answer_by_relation():
  """One toy rule, mirror the partner or show the opposite, told apart by the relation alone; new motion every step."""
  model = MotionGenerator(dataclasses.replace(SMALL, dropout=0.0, social_norm=True))
  inputs = make_inputs(frames=20, batch=(8,))
  relations = jnp.arange(8)[:, None] % 2 * jnp.array([1, 1])
  sign = 2.0 * relations[:, :1, None] - 1.0

  def loss_fn(params, key, relation):
    motion = jnp.broadcast_to(jax.random.normal(key, (8, 1, 1)), inputs["motion_a"].shape)
    out = model.apply(params, **inputs | {"motion_a": motion, "social": make_social(relation)})
    return jnp.mean((out - sign * motion) ** 2)  # About 1 for an output of zero.

  optimizer = optax.adam(1e-2)

  @jax.jit
  def step(params, state, i):
    loss, grads = jax.value_and_grad(loss_fn)(params, jax.random.key(i), relations)
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(params, updates), state, loss

  params = jax.jit(model.init)(KEY, **inputs)
  state = optimizer.init(params)
  for i in range(200):
    params, state, _ = step(params, state, i)
  unseen = jax.random.split(jax.random.key(1), 32)
  score = jax.jit(lambda relation: jnp.mean(jax.vmap(lambda key: loss_fn(params, key, relation))(unseen)))
  assert float(score(relations)) < 0.5  # Without the relation the best is 1.
  assert float(score(1 - relations)) > 2.0  # Told the wrong relation, it does the opposite.


def test_config_checks_itself():
  with pytest.raises(ValueError, match="heads"):
    motion_config(features=30, heads=4)


def test_dropout_needs_its_key():
  model, params = make_model(dataclasses.replace(SMALL, dropout=0.5))
  inputs = make_inputs()
  first, second = (
      model.apply(params, **inputs, deterministic=False, rngs={"dropout": jax.random.key(i)}) for i in range(2)
  )
  assert not np.allclose(first, second)


def test_every_transformer_layer_forgets_what_the_config_says():
  count = {}
  for remat in ("none", "full"):
    config = motion_config(features=16, heads=2, encoder_layers=3, decoder_layers=2, remat=remat)
    model = MotionGenerator(config)
    inputs = *(np.ones((10, width), np.float32) for width in (3, 56, 3)), np.ones(16, np.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    count[remat] = str(jax.make_jaxpr(lambda params: model.apply(params, *inputs))(params)).count("prevent_cse=")
  assert count == {"none": 0, "full": 5}
