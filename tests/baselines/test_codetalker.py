"""CodeTalker: codes that depend on their surroundings alone, a roll-out equal to decoding all so far, and what it hears."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motion_configs import motion_config
from rsatalker_jax.baselines.motion.codetalker import CodeTalker
from short_training import make_waves, train

SIZES = dict(
    features=8, tokens=2, codebook=12, code_layers=2, code_heads=2, code_hidden=10, code_reach=2, layers=2, heads=2, hidden=10, reach=5,
    period=5, dropout=0.0, speech_layers=1, speech_kernel=3, speech_hidden=4, own_share=1.0,
)  # fmt: skip
CONFIG = motion_config()
GENERATOR = CodeTalker(CONFIG, **SIZES)
FRAMES = 14
MEAN, STD = np.linspace(-1, 1, 56, dtype=np.float32), np.linspace(0.5, 2, 56, dtype=np.float32)
# What a code sees to each side: two layers of two frames and a convolution of two.
AROUND = 2 * 2 + 2


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def make_inputs(*batch, frames=FRAMES):
  return dict(
      speech_a=draw(*batch, frames, 6, seed=1), motion_a=draw(*batch, frames, 56, seed=2), speech_b=draw(*batch, frames, 6, seed=3),
      social=np.zeros((*batch, 128), np.float32),
  )  # fmt: skip


@pytest.fixture(scope="module")
def variables():
  """With a codebook as wide as tokens are, and tokens that are not zero, as the first ones are."""
  made = jax.jit(GENERATOR.init)(jax.random.key(0), **make_inputs(frames=2))
  made["params"]["codes"]["quantizer"]["codebook"] = 0.1 * draw(12, 4, seed=4)
  made["params"]["tokens_out"]["kernel"] = 0.5 * draw(8, 8, seed=5)
  made["params"]["motion_in"]["kernel"] *= 3
  return {"params": made["params"], "statistics": {"motion_mean": jnp.asarray(MEAN), "motion_std": jnp.asarray(STD)}}


apply = jax.jit(GENERATOR.apply, static_argnames="method")
encode = jax.jit(lambda variables, motion: GENERATOR.apply(variables, motion, method=lambda m, x: m.codes.encode(x)))
decode = jax.jit(lambda variables, codes: GENERATOR.apply(variables, codes, method=lambda m, x: m.codes.decode(x)))
quantize = jax.jit(lambda variables, tokens: GENERATOR.apply(variables, tokens, method=lambda m, x: m.codes.quantizer(x)))


def test_codes_change_only_where_the_motion_does(variables):
  motion = draw(40, 56)
  other = motion.copy()
  other[20:22] += 1
  moved = np.abs(encode(variables, motion) - encode(variables, other)).max((1, 2))
  changed = np.flatnonzero(moved)
  assert (changed.min(), changed.max()) == (20 - AROUND, 21 + AROUND)


def test_codes_do_not_depend_on_where_a_window_begins_but_for_the_period(variables):
  motion = draw(40, 56)
  whole, later, between = (encode(variables, motion[start:]) for start in (0, 10, 8))
  inside = slice(AROUND, None)
  np.testing.assert_allclose(later[inside], whole[10:][inside], atol=1e-5)
  assert np.abs(between[inside] - whole[8:][inside]).max() > 0.01  # Time is seen.


def test_a_batch_of_two_is_two_batches_of_one(variables):
  motion = draw(2, FRAMES, 56)
  both = encode(variables, motion), decode(variables, quantize(variables, encode(variables, motion)))
  for b in range(2):
    alone = encode(variables, motion[b : b + 1]), decode(variables, quantize(variables, encode(variables, motion[b : b + 1])))
    for x, y in zip(both, alone):
      np.testing.assert_allclose(x[b], y[0], atol=1e-5)
  inputs = make_inputs(2)
  made = apply(variables, **inputs)
  for b in range(2):
    np.testing.assert_allclose(made[b], apply(variables, **{name: x[b] for name, x in inputs.items()}), atol=1e-4)
  assert np.abs(made[0] - made[1]).max() > 0.1


def test_the_decoder_sees_the_past(variables):
  codes = draw(FRAMES, 2, 4)
  moved = np.abs(decode(variables, codes) - decode(variables, codes + (np.arange(FRAMES) == 7)[:, None, None])).max(1)
  assert not moved[:7].any() and (moved[7:] > 1e-4).all()


def generate_in_loops(variables, memory, own, fed):
  """As published: of all frames so far in each step, of which the last is the next input where that is to be its own."""
  frames = len(memory)
  inputs, motion = np.array(fed), np.zeros((0, 56))
  predict = functools.partial(apply, variables, method="predict_tokens")
  for t in range(frames):
    if own[t]:
      inputs[t] = motion[t - 1] if t else 0
    # The rest is the future, which nothing sees; programs of one length are enough.
    tokens = predict(memory, jnp.asarray(inputs))
    motion = np.asarray(decode(variables, quantize(variables, tokens)))[: t + 1]
  return motion


@pytest.mark.parametrize("own", ["all", "none", "some"])
def test_the_roll_out_is_that_of_all_frames_so_far(variables, own):
  """Longer than what attention reaches, and than the period."""
  memory, fed = draw(FRAMES, 8, seed=6), draw(FRAMES, 56, seed=7)
  own = {"all": np.ones(FRAMES, bool), "none": np.zeros(FRAMES, bool), "some": np.arange(FRAMES) % 3 > 0}[own]
  made = apply(variables, memory, fed, own[:, None], method="roll_out")
  np.testing.assert_allclose(made, generate_in_loops(variables, memory, own, fed), atol=1e-4)
  assert made.std(0).min() > 1e-3


def test_what_is_generated_is_a_roll_out_of_the_own_voice_in_raw_units(variables):
  inputs = make_inputs()
  made = apply(variables, **inputs)
  memory = GENERATOR.apply(variables, inputs["speech_b"], method=lambda m, x: m.speech_adapter(x))
  own = generate_in_loops(variables, memory, np.ones(FRAMES, bool), np.zeros((FRAMES, 56), np.float32))
  np.testing.assert_allclose(made, MEAN + STD * own, atol=1e-4)
  for name, seen in dict(speech_a=False, motion_a=False, social=False, speech_b=True).items():
    other = apply(variables, **inputs | {name: inputs[name] + 1})
    assert np.any(other != made) == seen, name


def test_frames_see_no_voice_ahead_in_the_causal_form(variables):
  """Of twenty voices, since a change of the tokens need not change the codes."""
  inputs = make_inputs(20)
  other = inputs | {"speech_b": inputs["speech_b"] + 5 * draw(20, FRAMES, 6, seed=9) * (np.arange(FRAMES) >= 7)[:, None]}
  for causal, first in ((True, 7), (False, 6)):  # The adapter's kernel reaches a frame to each side.
    form = CodeTalker(motion_config(causal=causal), **SIZES)
    moved = np.abs(jax.jit(form.apply)(variables, **inputs) - jax.jit(form.apply)(variables, **other)).max((0, 2))
    assert np.flatnonzero(moved)[0] == first


def test_a_padded_clip_is_the_clip_alone(variables):
  alone = make_inputs(frames=9)
  padded = {name: np.concatenate([x, np.full((5, x.shape[1]), 9, np.float32)]) for name, x in alone.items() if name != "social"}
  made = apply(variables, **padded, social=alone["social"], num_frames=np.asarray(9, np.int32))
  np.testing.assert_allclose(made[:9], apply(variables, **alone), atol=1e-4)


def training_terms(variables, inputs, motion, progress, generator=GENERATOR):
  rngs = {"sample": jax.random.key(1), "dropout": jax.random.key(2)}
  return generator.apply(variables, **inputs, motion_b=motion, progress=progress, rngs=rngs, method="training_terms")


def test_training_begins_on_true_frames_and_ends_on_its_own(variables):
  inputs, motion = make_inputs(3), MEAN + STD * draw(3, FRAMES, 56, seed=8)
  normal = (motion - MEAN) / STD
  wanted = quantize(variables, encode(variables, normal))
  memory = GENERATOR.apply(variables, inputs["speech_b"], method=lambda m, x: m.speech_adapter(x))
  shift = lambda x: np.concatenate([np.zeros((3, 1, 56), np.float32), x[:, :-1]], axis=1)
  own = (apply(variables, **inputs) - MEAN) / STD
  terms = jax.jit(training_terms)
  for progress, fed in ((0.0, shift(normal)), (1.0, shift(np.asarray(own)))):
    tokens = apply(variables, memory, fed, method="predict_tokens")
    made = decode(variables, quantize(variables, tokens))
    found = terms(variables, inputs, motion, progress)
    np.testing.assert_allclose(found["motion"], np.mean((made - normal) ** 2), rtol=1e-4)
    np.testing.assert_allclose(found["tokens"], np.mean((tokens - wanted) ** 2), rtol=1e-4)
  np.testing.assert_allclose(made, own, atol=1e-4)
  ends = [float(terms(variables, inputs, motion, x)["motion"]) for x in (0.0, 0.5, 1.0)]
  assert len(set(ends)) == 3
  never = CodeTalker(CONFIG, **SIZES | {"own_share": 0.0})
  assert float(jax.jit(functools.partial(training_terms, generator=never))(variables, inputs, motion, 1.0)["motion"]) == ends[0]


def test_the_codes_loss(variables):
  motion = MEAN + STD * draw(2, FRAMES, 56, seed=8)
  normal = (motion - MEAN) / STD
  tokens = encode(variables, normal)
  terms = apply(variables, motion, progress=0.5, method="codes_terms")
  made = decode(variables, quantize(variables, tokens))
  np.testing.assert_allclose(terms["motion"], np.mean(np.abs(made - normal)), rtol=1e-5)
  of_codes = GENERATOR.apply(variables, tokens, method=lambda m, x: m.codes.quantizer.terms(x))
  assert set(terms) == {"motion", *of_codes}
  for name, value in of_codes.items():
    np.testing.assert_allclose(terms[name], value, rtol=1e-5)


def test_dropout_is_drawn_in_training_alone():
  """In the codes' stage in both halves; afterwards in the predictor, and not in the codes, which are fixed."""
  generator = CodeTalker(CONFIG, **SIZES | {"dropout": 0.5, "own_share": 0.0})
  inputs, motion = make_inputs(2), draw(2, FRAMES, 56)
  variables = generator.init(jax.random.key(0), **make_inputs(frames=2))
  variables["params"]["tokens_out"]["kernel"] = 0.5 * draw(8, 8, seed=5)
  stages = {"codes_terms": dict(motion_b=motion), "training_terms": dict(**inputs, motion_b=motion)}
  for method, given in stages.items():
    run = lambda seed: generator.apply(
        variables, **given, progress=0.0, rngs={"dropout": jax.random.key(seed), "sample": jax.random.key(0)}, method=method
    )
    first, again, other = run(0), run(0), run(1)
    for name in ("motion", "commitment" if method == "codes_terms" else "tokens"):
      assert first[name] == again[name] != other[name]


def test_it_learns_codes_and_motion_of_them():
  """More than one code is used, from a codebook that begins at one point; what is generated moves."""
  generator = CodeTalker(CONFIG, **SIZES | dict(features=32, codebook=32, code_layers=1, layers=1, code_reach=4, reach=29, period=25))
  inputs, motion = make_inputs(2, frames=30), make_waves(0, 2, 30)
  variables = jax.jit(generator.init)(jax.random.key(0), **inputs)
  variables, first, last = train(generator, variables, "codes_terms", (motion,), steps=100)
  codes = generator.apply(variables, motion, method=lambda m, x: m.codes.quantizer.nearest(m.codes.encode(x)))
  counts = np.bincount(np.ravel(codes), minlength=32)
  assert last["motion"] < 0.7 * first["motion"] and np.sum(counts > 2) > 8
  variables, first, last = train(generator, variables, "training_terms", (*inputs.values(), motion), steps=60)
  assert last["motion"] < 0.8 * first["motion"]
  made = jax.jit(generator.apply)(variables, **inputs)
  assert np.mean((made - motion) ** 2) < 0.7  # Of a variance of 1, each frame made of those that were made.
