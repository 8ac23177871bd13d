"""L2L: codes that are local, blocks that nothing later changes, the roll-out and the loss against loops over blocks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motion_configs import motion_config
from rsatalker_jax.baselines.motion import l2l
from rsatalker_jax.baselines.motion.quantizing import Quantizer
from rsatalker_jax.motion import clips
from short_training import make_waves, train

SIZES = dict(
    mels_per_frame=2, features=8, codebook=12, code_layers=1, code_heads=2, code_hidden=10, speaker_features=12, layers=1, past_layers=1,
    speaker_layers=2, heads=2, hidden=10, samples=False, temperature=0.7, top_p=0.9,
)  # fmt: skip
GENERATOR = l2l.L2L(motion_config(), **SIZES)
DRAWING = l2l.L2L(motion_config(), **SIZES | {"samples": True})
FRAMES = 45  # Five blocks and five frames of a sixth.
MEAN, STD = np.linspace(-1, 1, 56, dtype=np.float32), np.linspace(0.5, 2, 56, dtype=np.float32)
KEY = jax.random.key(3)


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def make_inputs(*batch, frames=FRAMES):
  return dict(
      speech_a=draw(*batch, frames, 6, seed=1), motion_a=draw(*batch, frames, 56, seed=2), speech_b=draw(*batch, frames, 6, seed=3),
      social=np.zeros((*batch, 128), np.float32),
  )  # fmt: skip


@pytest.fixture(scope="module")
def variables():
  """Random ones by which it depends on the inputs which code is the likeliest."""
  shapes = jax.eval_shape(GENERATOR.init, jax.random.key(0), **make_inputs(frames=2))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype), shapes["params"])
  plain = {"bias": jnp.zeros_like, "scale": jnp.ones_like}
  params["predictor"] = jax.tree_util.tree_map_with_path(lambda path, x: plain.get(path[-1].key, jnp.array)(x), params["predictor"])
  for *names, factor in (("speaker", "kernel", 4), ("layer_0", "value", "kernel", 4), ("positions", 0.1), ("past_positions", 0.1)):
    place = params["predictor"]
    for name in names[:-1]:
      place = place[name]
    place[names[-1]] *= factor
  params["predictor"]["codes"]["embedding"] = 0.3 * draw(13, 12, seed=5)
  made = {"params": params, "statistics": {"motion_mean": jnp.asarray(MEAN), "motion_std": jnp.asarray(STD)}}
  # Codes that are tokens of some motion.
  params["codes"]["quantizer"]["codebook"] = encode(made, draw(12 * 8, 56, seed=4)) / Quantizer.PACE
  return made


@functools.partial(jax.jit, static_argnames="drawing")
def apply(variables, key=KEY, drawing=False, **inputs):
  return (DRAWING if drawing else GENERATOR).apply(variables, **inputs, rngs={"sample": key})


def part(method):
  return jax.jit(lambda variables, *x: GENERATOR.apply(variables, *x, method=method))


encode = part(lambda m, x: m.codes.encode(x))
nearest = part(lambda m, x: m.codes.quantizer.nearest(m.codes.encode(x)))
decode = part(lambda m, codes: m.codes.decode(m.codes.quantizer.vectors(codes)))
predict = part(lambda m, *x: m.predictor(*x))


def test_codes_change_only_where_the_motion_does(variables):
  motion = draw(64, 56)
  other = motion + 2 * (np.arange(64) // 8 == 3)[:, None]
  tokens, moved = encode(variables, motion), encode(variables, other)
  np.testing.assert_array_equal(np.flatnonzero(np.any(tokens != moved, axis=1)), [3])
  assert tokens.shape == (8, 8) and len(np.unique(nearest(variables, draw(400, 56)))) > 5
  for t in range(24, 32):  # All frames and channels of a token count.
    assert np.any(encode(variables, motion + (np.arange(64) == t)[:, None])[3] != tokens[3])


def test_a_batch_of_two_is_two_batches_of_one(variables):
  motion, inputs = draw(2, 32, 56), make_inputs(2)
  both, made = nearest(variables, motion), apply(variables, **inputs)
  decoded = decode(variables, both)
  for b in range(2):
    np.testing.assert_array_equal(both[b], nearest(variables, motion[b : b + 1])[0])
    np.testing.assert_allclose(decoded[b], decode(variables, both[b]), atol=1e-4)
    np.testing.assert_allclose(made[b], apply(variables, **{name: x[b] for name, x in inputs.items()}), atol=1e-3)
  assert np.abs(made[0] - made[1]).max() > 0.1


def test_all_four_codes_count_in_all_frames(variables):
  codes = np.array([1, 5, 2, 7])
  made = decode(variables, codes)
  assert made.shape == (32, 56)
  for i in range(4):
    other = codes + (np.arange(4) == i)
    assert (np.abs(decode(variables, other) - made).max(1) > 1e-4).all()


@pytest.mark.parametrize("drawing", [False, True])
def test_a_block_does_not_change_by_what_comes_after_it(variables, drawing):
  """Of fifty clips, since a change of the logits need not change the code."""
  inputs = make_inputs(50)
  made = apply(variables, drawing=drawing, **inputs)
  for name in ("speech_a", "motion_a"):
    for first in (16, 23):  # The first and the last frame of the third block.
      other = inputs | {name: inputs[name] + 20 * draw(*inputs[name].shape, seed=8) * (np.arange(FRAMES) >= first)[:, None]}
      moved = np.abs(apply(variables, drawing=drawing, **other) - made).max((0, 2))
      assert not moved[:16].any() and moved[16:].all()


def test_what_is_heard_and_seen(variables):
  inputs = make_inputs(4)
  made = apply(variables, **inputs)
  for name, seen in dict(speech_a=True, motion_a=True, speech_b=False, social=False).items():
    other = inputs | {name: inputs[name] + draw(*inputs[name].shape, seed=9)}
    assert np.any(apply(variables, **other) != made) == seen, name


def test_of_each_mel_the_largest_of_a_frames_windows_is_heard(variables):
  """Features are the windows one after another, three mels each."""
  inputs = make_inputs()
  windows = inputs["speech_a"].reshape(FRAMES, 2, 3)
  made = apply(variables, **inputs)
  exchanged = windows[:, ::-1].reshape(FRAMES, 6)
  np.testing.assert_array_equal(apply(variables, **inputs | {"speech_a": exchanged}), made)
  softer = np.where(windows == windows.max(1, keepdims=True), windows, windows - 5).reshape(FRAMES, 6)
  np.testing.assert_array_equal(apply(variables, **inputs | {"speech_a": softer}), made)
  assert np.any(apply(variables, **inputs | {"speech_a": -inputs["speech_a"]}) != made)


def speaker_of_block(inputs, block):
  """The 40 frames of the speaker that end with a block: largest mels and normalised motion, zero where there is no frame."""
  voice = inputs["speech_a"].reshape(-1, 2, 3).max(1)
  seen = voice, (inputs["motion_a"] - MEAN) / STD
  return [np.stack([x[t] if 0 <= t < len(x) else np.zeros(x.shape[1]) for t in range(8 * block - 32, 8 * block + 8)]) for x in seen]


def test_the_roll_out_is_a_loop_over_blocks(variables):
  """The likeliest code of 40 frames of A and the four codes before it; of its decoding with the three before it the end."""
  inputs = make_inputs()
  rest = int(nearest(variables, np.zeros((8, 56), np.float32))[0])
  codes, wanted = [-1] * 4, []
  for block in range(6):
    speaker = speaker_of_block(inputs, block)
    code = int(np.argmax(predict(variables, np.array(codes[-4:]), *(x.astype(np.float32) for x in speaker))[0]))
    codes.append(code)
    wanted.append(decode(variables, np.array([rest if c < 0 else c for c in codes[-4:]]))[-8:])
  made = apply(variables, **inputs)
  assert made.shape == (FRAMES, 56) and len(set(codes[4:])) > 2
  np.testing.assert_allclose(made, MEAN + STD * np.concatenate(wanted)[:FRAMES], atol=1e-3)


def test_the_past_and_its_order_count(variables):
  speaker = [x.astype(np.float32) for x in speaker_of_block(make_inputs(), 4)]
  past = np.array([3, 1, 4, 11])
  logits = predict(variables, past, *speaker)
  assert logits.shape == (4, 12)
  others = [np.where(np.arange(4) == i, -1, past) for i in range(4)] + [past[::-1].copy()]
  for other in others:
    assert np.abs(predict(variables, other, *speaker) - logits).max() > 1e-3
  # A code that is not known is none of the codes.
  last = [predict(variables, np.array([3, 1, 4, code]), *speaker) for code in range(-1, 12)]
  assert all(np.abs(known - last[0]).max() > 1e-3 for known in last[1:])


def test_the_larger_of_each_two_steps():
  x = draw(2, 6, 3)
  np.testing.assert_array_equal(l2l._halve(jnp.asarray(x)), x.reshape(2, 3, 2, 3).max(2))


def test_a_padded_clip_is_the_clip_alone(variables):
  alone = make_inputs()
  padded = clips.pad_clip(**{name: alone[name] for name in ("speech_a", "motion_a", "speech_b")})
  for name in ("speech_a", "motion_a", "speech_b"):
    padded[name][FRAMES:] = 9.0
  for drawing in (False, True):
    made = apply(variables, drawing=drawing, **padded, social=alone["social"])[:FRAMES]
    np.testing.assert_allclose(made, apply(variables, drawing=drawing, **alone), atol=1e-3)


def test_codes_are_drawn_from_the_key(variables):
  inputs = make_inputs()
  first, again = (apply(variables, jax.random.key(0), drawing=True, **inputs) for _ in range(2))
  np.testing.assert_array_equal(first, again)
  assert any(np.any(apply(variables, jax.random.key(i), drawing=True, **inputs) != first) for i in range(1, 4))
  for cautious in (dict(temperature=1e-4), dict(top_p=1e-6)):
    sure = l2l.L2L(motion_config(), **SIZES | {"samples": True} | cautious)
    made = jax.jit(sure.apply)(variables, **inputs, rngs={"sample": KEY})
    np.testing.assert_allclose(made, apply(variables, **inputs), atol=1e-4)
  assert DRAWING.samples and not GENERATOR.samples


def test_blocks_are_drawn_apart(variables):
  """Where all codes are equally probable, each block of each clip has its own."""
  flat = jax.tree.map(lambda x: x, variables)
  flat["params"]["predictor"]["logits"]["kernel"] *= 0
  free = l2l.L2L(motion_config(), **SIZES | {"samples": True, "top_p": 1.0})
  inputs = make_inputs(6, frames=80)
  made = np.asarray(jax.jit(free.apply)(flat, **inputs, rngs={"sample": KEY})).reshape(6, 10, -1)
  assert min(len(np.unique(made[b].round(3), axis=0)) for b in range(6)) > 5
  assert len(np.unique(made[:, 9].round(3), axis=0)) > 4


def test_the_most_probable_that_together_have_top_p():
  probabilities = np.array([[0.1, 0.5, 0.25, 0.15], [0.4, 0.3, 0.2, 0.1]], np.float32)
  kept = {p: np.isfinite(l2l.keep_probable(jnp.log(probabilities), p)).tolist() for p in (1e-6, 0.45, 0.6, 0.88, 1.0)}
  assert kept[1e-6] == [[False, True, False, False], [True, False, False, False]]
  assert kept[0.45] == [[False, True, False, False], [True, True, False, False]]
  assert kept[0.6] == [[False, True, True, False], [True, True, False, False]]
  assert kept[0.88] == [[False, True, True, True], [True, True, True, False]]
  assert kept[1.0] == [[True] * 4] * 2
  logits = jnp.log(probabilities) + 3
  np.testing.assert_array_equal(l2l.keep_probable(logits, 1.0), logits)


@pytest.mark.parametrize("shown", [0, 2, 4, 20])
def test_the_loss_is_the_cross_entropy_of_four_codes_from_each_block(variables, monkeypatch, shown):
  """With so many codes of the past shown; 69 frames are eight blocks, of which five have four codes from them on."""
  ranges = []

  def fixed(key, shape, low, high):
    ranges.append((low, high))
    return jnp.full(shape, shown)

  monkeypatch.setattr(jax.random, "randint", fixed)
  inputs = {name: x[0] for name, x in make_inputs(1, frames=69).items()}
  motion = MEAN + STD * draw(69, 56, seed=6)
  codes = np.asarray(nearest(variables, draw(69, 56, seed=6)[:64]))
  assert len(np.unique(codes)) > 2
  losses = []
  for block in range(5):
    past = np.concatenate([np.full(4, -1), codes])[block : block + 4]
    past[: max(0, 4 - shown)] = -1
    logits = predict(variables, past, *(x.astype(np.float32) for x in speaker_of_block(inputs, block)))
    for i in range(4):
      x = np.asarray(logits[i], np.float64)
      losses.append(np.log(np.exp(x).sum()) - x[codes[block + i]])
  terms = GENERATOR.apply(variables, **inputs, motion_b=motion, progress=0.3, rngs={"sample": KEY}, method="training_terms")
  np.testing.assert_allclose(terms["codes"], np.mean(losses), rtol=1e-4)
  assert set(terms) == {"codes"} and ranges == [(0, 21)]


def test_how_much_of_the_past_is_shown_is_drawn(variables):
  inputs = make_inputs(2, frames=64)
  run = lambda seed: GENERATOR.apply(
      variables, **inputs, motion_b=draw(2, 64, 56), progress=0.0, rngs={"sample": jax.random.key(seed)}, method="training_terms"
  )["codes"]
  assert run(0) == run(0) and len({float(run(seed)) for seed in range(6)}) > 1


def test_the_codes_loss(variables):
  """Means of the groups' errors over pieces of 32 frames, and the quantiser's terms."""
  normal = draw(2, 75, 56, seed=8)
  terms = GENERATOR.apply(variables, MEAN + STD * normal, progress=0.5, method="codes_terms")
  tokens = encode(variables, normal[:, :64])
  codes = nearest(variables, normal[:, :64])
  made = np.concatenate([decode(variables, codes[:, :4]), decode(variables, codes[:, 4:])], axis=1)
  error = np.abs(made - normal[:, :64])
  of_codes = GENERATOR.apply(variables, tokens, method=lambda m, x: m.codes.quantizer.terms(x))
  wanted = dict(expression=error[..., :50].mean(), jaw=error[..., 50:53].mean(), pose=error[..., 53:].mean(), **of_codes)
  assert set(terms) == set(wanted)
  for name, value in wanted.items():
    np.testing.assert_allclose(terms[name], value, rtol=1e-4)


def test_it_learns_codes_and_to_foresee_them():
  """Many codes are used, from a codebook that begins at one point; what is generated answers."""
  generator = l2l.L2L(motion_config(), **SIZES | dict(features=32, codebook=24, code_hidden=32, speaker_features=24, code_layers=1))
  inputs, motion = make_inputs(4, frames=64), make_waves(0, 4, 64)
  variables = jax.jit(generator.init)(jax.random.key(0), **inputs)
  variables, first, last = train(generator, variables, "codes_terms", (motion,), steps=120)
  codes = generator.apply(variables, motion, method=lambda m, x: m.codes.quantizer.nearest(m.codes.encode(x)))
  assert last["expression"] < 0.75 * first["expression"] and len(np.unique(codes)) > 8
  variables, first, last = train(generator, variables, "training_terms", (*inputs.values(), motion), steps=80)
  assert last["codes"] < 0.3 * first["codes"]
  made = jax.jit(generator.apply)(variables, **inputs)
  assert np.mean((made - motion) ** 2) < 0.8 * np.mean((made - motion[::-1]) ** 2) and made.std(1).mean() > 0.2
