"""TIMAR: turns and what they see, masks, sampling, and that training and generating are the same network."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motion_configs import motion_config
from short_training import make_waves, train
from rsatalker_jax.baselines.motion import timar
from rsatalker_jax.baselines.motion.diffusion import make_diffusion, spread_times
from rsatalker_jax.errors import InputError
from rsatalker_jax.motion import clips
from rsatalker_jax.types import MOTION_GROUPS

SMALL = dict(
    features=8, layers=1, heads=2, mlp_ratio=2, context=2, joined=False, speech_hidden=6, speech_layers=1, speech_kernel=3, dropout=0.0,
    mask_low=0.7, user_dropout=0.0, head="regression", head_features=8, head_layers=1, draws=2, learned_variance=True,
    sampling_steps=5, temperature=1.0, feedback=False, average=0.0,
)  # fmt: skip
KEY = jax.random.key(3)
SOCIAL = jnp.zeros(8)


def make_inputs(frames, *batch, seed=0):
  rng = np.random.default_rng(seed)
  draw = lambda width: rng.normal(size=(*batch, frames, width)).astype(np.float32)
  return dict(speech_a=draw(5), motion_a=draw(56), speech_b=draw(5))


@functools.cache
def make(**changes):
  """A generator with weights that are nowhere zero, mean and deviation of the motion, and its compiled call."""
  model = timar.Timar(motion_config(), **SMALL | changes)
  variables = jax.jit(model.init)(jax.random.key(0), **make_inputs(2), social=SOCIAL)
  leaves, tree = jax.tree.flatten(variables["params"])
  keys = jax.random.split(jax.random.key(1), len(leaves))
  params = jax.tree.unflatten(tree, [x + 0.3 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys)])
  statistics = {"motion_mean": jnp.linspace(-1, 1, 56), "motion_std": jnp.linspace(0.5, 2, 56)}
  variables = {"params": params, "statistics": statistics}
  social = lambda inputs: jnp.zeros((*inputs["motion_a"].shape[:-2], 8))
  call = lambda variables, inputs: model.apply(variables, **inputs, social=social(inputs), rngs={"sample": KEY})
  apply = jax.jit(call)
  return model, variables, functools.partial(apply, variables)


@functools.cache
def make_terms(**changes):
  return jax.jit(lambda variables, inputs, motion_b: make(**changes)[0].apply(
      variables, **inputs, social=jnp.zeros((len(motion_b), 8)), motion_b=motion_b, progress=jnp.zeros(()), method="training_terms",
      rngs={"sample": KEY, "dropout": KEY},
  ))  # fmt: skip


def training_terms(inputs, motion_b, variables=None, **changes):
  return make_terms(**changes)(variables or make(**changes)[1], inputs, motion_b)


@pytest.mark.parametrize("form", [dict(), dict(joined=True), dict(feedback=True), dict(head="diffusion")], ids=str)
def test_a_turn_sees_itself_and_the_turns_of_its_context_before_it(form):
  """100 frames are turns 0 … 3; of each the context is itself and one more."""
  *_, apply = make(**form)
  inputs = make_inputs(100)
  whole = apply(inputs)
  for name, turn in (("speech_a", 1), ("motion_a", 1), ("speech_b", 1), ("speech_b", 3)):
    for frame in (25 * turn, 25 * turn + 24):
      other = inputs | {name: inputs[name].copy()}
      other[name][frame] += 2
      moved = np.abs(apply(other) - whole).reshape(4, 25, 56).max(axis=-1)
      np.testing.assert_array_equal(moved[:turn], 0)
      assert np.all(moved[turn] > 1e-6), (name, frame)
      if turn == 1:
        assert np.all(moved[2] > 1e-6)  # Turn 2 has turn 1 in its context; turn 3 only if what is generated is fed back.
        assert np.all(moved[3] > 1e-7 if form.get("feedback") else moved[3] == 0)


@pytest.mark.parametrize("form, frames", [(dict(head="diffusion"), 31), (dict(feedback=True, joined=True), 140)], ids=str)
def test_padded_clips_equal_clips_alone(form, frames):
  *_, apply = make(**form)
  inputs = make_inputs(frames)
  padded = clips.pad_clip(**inputs)
  for name in inputs:
    padded[name][frames:] = 9.0
  alone = apply(inputs)
  assert alone.shape == (frames, 56) and alone.dtype == jnp.float32
  np.testing.assert_allclose(apply(padded)[:frames], alone, atol=2e-5 * np.abs(alone).max())


def test_turns_of_the_same_inputs_differ_by_chance_alone():
  inputs = {name: np.broadcast_to(x[:1], (100, x.shape[-1])) for name, x in make_inputs(100).items()}
  for head, differ in (("diffusion", True), ("regression", False)):
    turns = make(head=head)[2](inputs).reshape(4, 25, 56)
    assert (np.abs(turns[2] - turns[3]).max() > 0.1) == differ


def test_batches_are_their_clips():
  *_, apply = make()
  inputs = make_inputs(60, 2)
  both = apply(inputs)
  for i in range(2):
    np.testing.assert_allclose(both[i], apply({name: x[i] for name, x in inputs.items()}), atol=1e-5)


@pytest.mark.parametrize("joined", [False, True])
def test_training_on_masked_motion_is_generating_it(joined):
  """With all frames masked the loss of the regression is the error of what is generated, in z-scores, by group; what
  B's true motion is reaches no prediction."""
  inputs, motion_b = make_inputs(50, 2), make_inputs(50, 2, seed=1)["motion_a"]
  _, variables, apply = make(joined=joined)
  generated = apply(inputs)
  terms = training_terms(inputs, motion_b, joined=joined, mask_low=1.0)
  errors = np.square((generated - motion_b) / variables["statistics"]["motion_std"])
  assert terms.keys() == MOTION_GROUPS.keys()
  for name, group in MOTION_GROUPS.items():
    np.testing.assert_allclose(terms[name], errors[..., group].mean(), rtol=1e-4)
  # Frames that are not masked are seen: the loss is another one.
  assert abs(training_terms(inputs, motion_b, joined=joined)["expression"] - terms["expression"]) > 1e-4


def test_windows_may_end_within_a_turn():
  inputs, motion_b = make_inputs(31, 1), make_inputs(31, 1, seed=1)["motion_a"]
  _, variables, apply = make()
  errors = np.square((apply(inputs) - motion_b) / variables["statistics"]["motion_std"])
  np.testing.assert_allclose(training_terms(inputs, motion_b, mask_low=1.0)["jaw"], errors[..., 50:53].mean(), rtol=1e-4)
  with pytest.raises(InputError, match="motion.window: found 51, expected at most 50"):
    training_terms(make_inputs(51, 1), make_inputs(51, 1)["motion_a"])


def test_masks():
  drawn = jax.vmap(lambda key: timar.draw_masks(key, 3, 100, 0.7))(jax.random.split(KEY, 400))
  shares = drawn.mean(axis=-1)
  np.testing.assert_array_equal(shares, np.broadcast_to(shares[:, :1], shares.shape))  # One share a batch.
  assert shares.min() >= 0.7 - 1e-6 and shares.min() < 0.72 and shares.max() <= 1
  # The mean of a normal (1, 0.25) between 0.7 and 1, by quadrature.
  x = np.linspace(0.7, 1, 10_001)
  weight = np.exp(-0.5 * ((x - 1) / 0.25) ** 2)
  assert shares.mean() == pytest.approx((x * weight).sum() / weight.sum(), abs=0.015)
  by_frame = drawn.mean(axis=(0, 1))
  assert np.abs(by_frame - by_frame.mean()).max() < 0.06 and (drawn[:, 0] != drawn[:, 1]).any()


def test_errors_are_of_masked_frames():
  masked = jnp.array([[True, False, True], [False, False, True]])
  x = jnp.arange(2 * 2 * 3 * 2, dtype=jnp.float32).reshape(2, 2, 3, 2)
  np.testing.assert_allclose(timar._masked_mean(x, masked), np.asarray(x)[:, np.asarray(masked)].mean())


def test_user_tokens_are_dropped():
  """All of them: A is then not seen at all; of one in ten: another loss."""
  inputs, motion_b = make_inputs(50, 2), make_inputs(50, 2, seed=1)["motion_a"]
  others = make_inputs(50, 2, seed=2)
  loss = lambda share, **changes: float(training_terms(inputs | changes, motion_b, user_dropout=share)["expression"])
  for name in ("speech_a", "motion_a"):
    assert loss(1.0, **{name: others[name]}) == loss(1.0) and loss(0.5, **{name: others[name]}) != loss(0.5) != loss(1.0)
  assert loss(1.0, speech_b=others["speech_b"]) != loss(1.0)


def test_what_is_fed_back_is_what_was_generated():
  model, variables, apply = make(feedback=True)
  inputs = make_inputs(50)
  motion, blind = apply(inputs), make()[2](inputs)
  np.testing.assert_allclose(motion[:25], blind[:25], atol=1e-5)
  assert np.abs(motion[25:] - blind[25:]).max() > 1e-2

  def second_turn(model, past):
    streams = model._embed_inputs(**inputs)
    seen = jnp.array([[True], [False]])
    z = model._encode(*streams, timar.to_turns(past, 2), seen, jnp.ones((2, 25), bool), True)
    return model._denoise(z[1], None, jnp.arange(25, 50))

  mean, std = variables["statistics"].values()
  expected = model.apply(variables, (motion - mean) / std, method=second_turn)
  np.testing.assert_allclose(motion[25:], mean + std * expected, atol=1e-4)


@pytest.mark.parametrize("joined, streams", [(False, 4), (True, 2)])
def test_a_frame_is_conditioned_by_its_own_token_of_the_last_stream(joined, streams):
  """Without Transformer layers there is nothing else: z of frame t follows that token alone."""
  encoder = timar.TurnEncoder(8, 0, 2, 2, 2, streams, 0.0)
  tokens = jax.random.normal(KEY, (2, streams, 25, 8))
  variables = encoder.init(KEY, tokens, jnp.ones((2, 25), bool), deterministic=True)
  positions = variables["params"]["positions"]
  assert positions.shape == (2 * (27 * streams + 2), 8) and variables["params"]["separators"].shape == (2 * streams + 2, 8)
  z_of = lambda tokens: encoder.apply(variables, tokens, jnp.ones((2, 25), bool), deterministic=True)
  z = z_of(tokens)
  assert z.shape == (2, 25, 8)
  moved = np.abs(z_of(tokens.at[1, -1, 7].add(1.0)) - z).max(axis=-1)
  assert np.argwhere(moved > 0).tolist() == [[1, 7]]
  np.testing.assert_array_equal(z_of(tokens.at[:, :-1].add(1.0)), z)


def test_of_two_joined_tokens_the_last_has_the_voice_of_b():
  """Without Transformer layers a frame is made of that token alone: of B's voice, of nothing of A's."""
  _, _, generate = make(joined=True, layers=0)
  inputs = make_inputs(30)
  motion = np.asarray(generate(inputs))
  louder = lambda name: np.asarray(generate(inputs | {name: inputs[name] + 1.0}))
  for name in ("speech_a", "motion_a"):
    np.testing.assert_array_equal(louder(name), motion)
  assert np.abs(louder("speech_b") - motion).max() > 1e-4


class Oracle(nn.Module):
  """The best denoiser of motion whose values are N(z, 0.6²), with the variance of its step back."""

  features: int
  layers: int
  dtype: str

  def __call__(self, noisy, z, time):
    process = make_diffusion(spread_times(5))
    step = jnp.searchsorted(jnp.asarray(process.times), time)[..., None]
    signal, noise = (jnp.asarray(table)[step + 1] for table in (process.signal, process.noise))
    total, variance = (signal * 0.6) ** 2 + noise**2, 0.6**2
    mean = z[..., :1]
    low, high, weight = (jnp.asarray(table)[step] for table in (process.log_posterior, process.log_beta, process.clean_weight))
    best = jnp.log(jnp.exp(low) + weight**2 * variance * noise**2 / total)
    clean = mean + variance * signal / total * (noisy - signal * mean)
    return clean, jnp.broadcast_to(2 * (best - low) / (high - low) - 1, noisy.shape)


def expected_deviation(learned, temperature):
  """Of what the best denoiser makes of noise in five steps: a step back is linear in x_k."""
  process, total = make_diffusion(spread_times(5)), 1.0
  for k in reversed(range(5)):
    signal, noise = process.signal[k + 1], process.noise[k + 1]
    trust = 0.36 * signal / (0.36 * signal**2 + noise**2)
    gain = process.clean_weight[k] * trust + process.noisy_weight[k]
    left = 0.36 * noise**2 / (0.36 * signal**2 + noise**2) if learned else 0.0
    added = np.exp(process.log_posterior[k]) + process.clean_weight[k] ** 2 * left
    total = gain**2 * total + (temperature**2 * added if k else 0)
  return np.sqrt(total)


@pytest.mark.parametrize("learned, temperature", [(True, 1.0), (False, 1.0), (True, 0.5)])
def test_five_steps_of_the_best_denoiser_give_the_motion_its_distribution(monkeypatch, learned, temperature):
  monkeypatch.setattr(timar, "FrameDenoiser", Oracle)
  changes = dict(head="diffusion", learned_variance=learned, temperature=temperature)
  model = timar.Timar(motion_config(), **SMALL | changes)
  variables = model.init(KEY, **make_inputs(2), social=SOCIAL)
  z = jnp.linspace(-2, 2, 25)[:, None] * jnp.ones(8)
  draw = lambda key: model.apply(variables, z, key, jnp.arange(25), method="_denoise")
  drawn = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(KEY, 100)))
  # 5600 values a frame. Where the variance is the true one and no noise is taken away, the deviation is the motion's.
  deviation = expected_deviation(learned, temperature)
  assert (abs(deviation - 0.6) < 0.001) == (learned and temperature == 1)
  np.testing.assert_allclose(drawn.mean(axis=(0, 2)), z[:, 0], atol=0.04)
  np.testing.assert_allclose(drawn.std(axis=(0, 2)), deviation, atol=0.03)
  assert drawn[0].std(axis=1) == pytest.approx(deviation, abs=0.2) and np.abs(np.corrcoef(drawn[:, 0].ravel(), drawn[:, 1].ravel())[0, 1]) < 0.1


def test_what_it_says_of_itself():
  make_one = lambda **changes: timar.Timar(motion_config(), **SMALL | changes)
  assert make_one(head="diffusion").samples and not make_one().samples
  assert make_one().causal_form and make_one(average=0.5).average == 0.5


def test_the_head_begins_at_the_mean_and_follows_time_motion_and_condition():
  head = timar.FrameDenoiser(8, 2)
  noisy, z, time = jax.random.normal(KEY, (3, 56)), jax.random.normal(KEY, (3, 4)), jnp.array([0, 5, 900])
  variables = head.init(KEY, noisy, z, time)
  for out in head.apply(variables, noisy, z, time):
    np.testing.assert_array_equal(out, 0)
  variables = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(KEY, x.shape), variables)
  clean, variance = head.apply(variables, noisy, z, time)
  for other in ((noisy + 1, z, time), (noisy, z + 1, time), (noisy, z, time + 50)):
    assert all(np.all(np.abs(x - y).max(axis=-1) > 1e-4) for x, y in zip(head.apply(variables, *other), (clean, variance)))


def test_the_losses_begin_at_those_of_the_mean_motion():
  """The head then says 0: errors are the target's squares, averaged over group and frames."""
  inputs, motion_b = make_inputs(50, 2), make_inputs(50, 2, seed=1)["motion_a"]
  _, variables, _ = make(head="diffusion", mask_low=1.0)
  denoiser = variables["params"]["denoiser"]
  params = variables["params"] | {"denoiser": denoiser | {"out": jax.tree.map(jnp.zeros_like, denoiser["out"])}}
  terms = training_terms(inputs, motion_b, variables | {"params": params}, head="diffusion", mask_low=1.0)
  target = (motion_b - variables["statistics"]["motion_mean"]) / variables["statistics"]["motion_std"]
  for name, group in MOTION_GROUPS.items():
    np.testing.assert_allclose(terms[name], np.square(target[..., group]).mean(), rtol=1e-4)
  # Of 200 times: large where the noise is little, and of the size of its mean over all times.
  assert terms.keys() == MOTION_GROUPS.keys() | {"variance"} and 1 < terms["variance"] < 200
  terms = training_terms(inputs, motion_b, head="diffusion", mask_low=1.0, learned_variance=False)
  assert terms.keys() == MOTION_GROUPS.keys()


def test_dropout_is_drawn_in_training_alone():
  inputs, motion_b = make_inputs(50, 2), make_inputs(50, 2, seed=1)["motion_a"]
  dry, wet = (training_terms(inputs, motion_b, mask_low=1.0, dropout=rate)["expression"] for rate in (0.0, 0.5))
  assert abs(dry - wet) > 1e-4
  np.testing.assert_array_equal(make(dropout=0.5)[2](make_inputs(50)), make()[2](make_inputs(50)))


@pytest.mark.parametrize("head", ["diffusion", "regression"])
def test_from_its_first_weights_it_learns_to_hear(head):
  """Modulation and output start from zero: each can only move because the other's input is not zero, too."""
  model = timar.Timar(motion_config(), **SMALL | {"head": head})
  inputs, motion_b = make_inputs(50, 2), make_waves(1, 2, 50)
  statistics = {"motion_mean": jnp.zeros(56), "motion_std": jnp.ones(56)}
  fresh = jax.jit(model.init)(jax.random.key(0), **make_inputs(2), social=SOCIAL)["params"]
  given = (inputs["speech_a"], inputs["motion_a"], inputs["speech_b"], jnp.zeros((2, 8)), motion_b)
  learnt, *_ = train(model, {"params": fresh, "statistics": statistics}, "training_terms", given, steps=20, rate=1e-2)
  call = jax.jit(lambda inputs: model.apply(learnt, **inputs, social=jnp.zeros((2, 8)), rngs={"sample": KEY}))
  silent = call(inputs | {"speech_b": 0 * inputs["speech_b"]})
  assert np.abs(call(inputs) - silent).max() > 0.01
