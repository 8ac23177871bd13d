"""FaceFormer: the scan against recomputing everything for each frame, its wiring, teacher forcing, units, gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motion_configs import motion_config
from rsatalker_jax.baselines.motion.faceformer import FaceFormer
from rsatalker_jax.baselines.motion.layers import encode_periodic

SIZES = dict(
    features=8, heads=2, period=3, reach=40, dropout=0.0, speech_layers=1, speech_kernel=3, speech_hidden=6, normalised=True,
    teacher_forcing=False,
)  # fmt: skip
FRAMES = 6
RNG = np.random.default_rng(0)
SPEECH, MOTION = (jnp.asarray(RNG.normal(size=(FRAMES, width)), jnp.float32) for width in (5, 56))
INPUTS = SPEECH + 1, MOTION + 1, SPEECH, jnp.zeros(3)
MEAN, STD = jnp.linspace(-1, 1, 56), jnp.linspace(0.5, 2, 56)


def make_variables(**changes):
  model = FaceFormer(motion_config(), **SIZES | changes)
  shapes = jax.eval_shape(model.init, jax.random.key(0), *INPUTS)["params"]
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype), shapes)
  return model, {"params": params, "statistics": {"motion_mean": MEAN, "motion_std": STD}}


def recompute(model, variables, speech):
  """For each frame everything again, from what was made of the frames before: no cache and no scan."""
  bound, made = model.bind(variables), jnp.zeros((0, 56))
  voice = bound.speech_adapter(speech)
  for t in range(len(speech)):
    shown = jnp.concatenate([made, jnp.full((1, 56), jnp.nan)])  # That of the frame itself is not looked at.
    made = jnp.concatenate([made, bound.predict(shown, voice[: t + 1])[t:]])
  return MEAN + STD * made


@pytest.mark.parametrize("reach", [40, 2])
def test_scan_with_cache_equals_the_full_recomputation(reach):
  model, variables = make_variables(reach=reach)
  expected = jax.jit(lambda variables: recompute(model, variables, SPEECH))(variables)
  assert np.std(expected - MEAN) > 0.3
  np.testing.assert_allclose(jax.jit(model.apply)(variables, *INPUTS), expected, atol=1e-4)


def test_gradients_go_through_the_whole_roll_out():
  """As of the full recomputation, for all parameters and the voice; the last frame's reach the first frame's voice."""
  model, variables = make_variables(speech_kernel=1)
  frames = 4
  weights = jnp.zeros((frames, 56)).at[-1].set(MOTION[0])
  with_params = lambda params: {**variables, "params": params}
  of_scan = lambda params, speech: jnp.sum(weights * model.apply(with_params(params), speech, MOTION[:frames], speech, INPUTS[3]))
  of_loop = lambda params, speech: jnp.sum(weights * recompute(model, with_params(params), speech))
  gradients = lambda f: jax.jit(jax.grad(f, argnums=(0, 1)))(variables["params"], SPEECH[:frames])
  found, expected = gradients(of_scan), gradients(of_loop)
  for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(x, y, atol=2e-4 * np.abs(y).max() + 1e-5)
  assert np.abs(found[1][0]).max() > 1e-5


def test_wiring_is_the_published_one():
  """x_0 = s, x_t = s + W_m y_(t-1) + b_m, a position code, the decoder layer on the voice, a linear layer; behind it the units."""
  model, variables = make_variables()
  bound = model.bind(variables)
  voice, weights = bound.speech_adapter(SPEECH), variables["params"]
  inner = weights["motion_in"]
  x = jnp.concatenate([jnp.zeros((1, 8)), MOTION[:-1] @ inner["kernel"] + inner["bias"]]) + weights["style"]
  z = bound.layer(x + encode_periodic(np.arange(FRAMES), 8, 3), voice)
  expected = z @ weights["motion_out"]["kernel"] + weights["motion_out"]["bias"]
  np.testing.assert_allclose(bound.predict(MOTION, voice), expected, atol=1e-5)
  np.testing.assert_allclose(bound(*INPUTS), MEAN + STD * bound.roll_out(voice), atol=1e-5)
  assert bound.layer.hidden == 16 and weights["motion_in"]["kernel"].shape == (56, 8)


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("normalised", [True, False])
def test_loss_is_the_mean_squared_error_in_its_units(normalised, forced):
  """In standard deviations, or in the motion's own units; of what is made freely, or of what the truth is followed by."""
  model, variables = make_variables(normalised=normalised, teacher_forcing=forced)
  bound, truth, std = model.bind(variables), 0.3 * MOTION, STD if normalised else jnp.ones(56)
  y = (truth - MEAN) / std
  voice = bound.speech_adapter(SPEECH)
  made = bound.predict(y, voice) if forced else bound.roll_out(voice)
  rngs = {"dropout": jax.random.key(0)}
  terms = model.apply(variables, *INPUTS, truth, progress=0.0, method="training_terms", rngs=rngs)
  assert set(terms) == {"motion"}
  np.testing.assert_allclose(terms["motion"], np.mean((made - y) ** 2), rtol=1e-4)
  np.testing.assert_allclose(bound(*INPUTS), MEAN + std * bound.roll_out(voice), atol=1e-5)


@pytest.mark.parametrize("forced", [False, True])
def test_dropout_is_drawn_in_training_alone(forced):
  """Behind the position code and in the layer, in each step anew."""
  model, variables = make_variables(dropout=0.5, teacher_forcing=forced)
  terms = lambda variables, key: model.apply(variables, *INPUTS, MOTION, progress=0.0, method="training_terms", rngs={"dropout": key})
  loss = lambda seed: jax.jit(terms)(variables, jax.random.key(seed))["motion"]
  assert loss(0) != loss(1) and loss(0) == loss(0)
  np.testing.assert_array_equal(model.apply(variables, *INPUTS), make_variables()[0].apply(variables, *INPUTS))


@pytest.mark.parametrize("method", ["roll_out", "predict"])
def test_every_dropout_is_asked(method):
  """That of the embedding, of attention's weights to the past and to the voice, on the three branches and in the MLP."""
  model, variables = make_variables(dropout=0.5)
  voice = jnp.ones((FRAMES, 8))
  given = (voice,) if method == "roll_out" else (MOTION, voice)
  for deterministic in (False, True):
    asked = {}

    def note(call, args, kwargs, context):
      if isinstance(context.module, nn.Dropout):
        said = kwargs.get("deterministic", context.module.deterministic)
        asked.setdefault(context.module.path[-2:], []).append(said)
      return call(*args, **kwargs)

    with nn.intercept_methods(note):
      options = dict(deterministic=deterministic, method=method, rngs={"dropout": jax.random.key(0)})
      jax.eval_shape(lambda: model.apply(variables, *given, **options))
    paths = {("drop",), ("layer", "drop"), ("self_attention", "drop"), ("memory_attention", "Dropout_0")}
    assert {path: set(said) for path, said in asked.items()} == {path: {deterministic} for path in paths}


def test_each_frame_of_a_roll_out_draws_its_own():
  """Of a clip whose frames are alike but for what is drawn in the scan."""
  model, variables = make_variables(dropout=0.5, period=1)
  variables["params"]["layer"]["memory_attention"]["out"] = {"kernel": jnp.zeros((8, 8)), "bias": jnp.zeros(8)}
  drop = dict(deterministic=False, rngs={"dropout": jax.random.key(0)})
  made = lambda **drawn: model.apply(variables, jnp.zeros((20, 8)), method="roll_out", **drawn)
  changes = lambda **drawn: np.abs(np.diff(made(**drawn)[10:], axis=0)).max(axis=1).min()
  assert changes() < 1e-3 < 0.1 < changes(**drop)
