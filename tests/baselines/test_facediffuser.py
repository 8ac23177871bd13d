"""FaceDiffuser: its recurrence against PyTorch's, what it hears, sampling, and the distillation of two steps into one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motion_configs import motion_config
from rsatalker_jax.baselines.motion.diffusion import cosine_schedule, trailing_times
from rsatalker_jax.baselines.motion.facediffuser import FaceDiffuser, Gru
from rsatalker_jax.motion import clips

SMALL = dict(
    features=8, dropout=0.0, speech_features=8, speech_layers=2, speech_kernel=3, speech_hidden=6, sampling_steps=4,
    distilled_steps=0, average=0.0,
)  # fmt: skip
KEY = jax.random.key(3)
SOCIAL = jnp.zeros(8)
STATISTICS = {"motion_mean": jnp.linspace(-1, 1, 56), "motion_std": jnp.linspace(0.5, 2, 56)}


def make_inputs(frames, *batch, seed=0):
  rng = np.random.default_rng(seed)
  draw = lambda width: rng.normal(size=(*batch, frames, width)).astype(np.float32)
  return dict(speech_a=draw(5), motion_a=draw(56), speech_b=draw(5))


@functools.cache
def make(causal=False, **changes):
  model = FaceDiffuser(motion_config(causal=causal), **SMALL | changes)
  params = jax.jit(model.init)(jax.random.key(0), **make_inputs(2), social=SOCIAL)["params"]
  variables = {"params": params, "statistics": STATISTICS}
  call = jax.jit(lambda variables, inputs: model.apply(variables, **inputs, social=SOCIAL, rngs={"sample": KEY}))
  return model, variables, functools.partial(call, variables)


def test_the_recurrence_is_pytorchs():
  torch = pytest.importorskip("torch")
  ours, theirs = Gru(6), torch.nn.GRU(4, 6, batch_first=True)
  x = np.random.default_rng(0).normal(size=(2, 13, 4)).astype(np.float32)
  params = ours.init(KEY, x)["params"]
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), jnp.float32), params)
  recurrent = np.concatenate([params[name].T for name in ("reset", "update", "new")])
  biases = np.concatenate([np.zeros(12), params["new_bias"]])  # The other two of PyTorch's are those of the inputs again.
  for name, value in dict(weight_ih_l0=params["inputs"]["kernel"].T, bias_ih_l0=params["inputs"]["bias"],
                          weight_hh_l0=recurrent, bias_hh_l0=biases).items():
    getattr(theirs, name).data = torch.tensor(np.array(value, np.float32))
  expected, _ = theirs(torch.tensor(x))
  np.testing.assert_allclose(ours.apply({"params": params}, x), expected.detach(), atol=1e-5)


@pytest.mark.parametrize("causal, distilled", [(False, 0), (True, 2)])
def test_it_hears_b_alone_and_ahead_no_further_than_its_adapter(causal, distilled):
  *_, apply = make(causal=causal, distilled_steps=distilled)
  inputs = make_inputs(30)
  whole = apply(inputs)
  others = make_inputs(30, seed=1)
  for name in ("speech_a", "motion_a"):
    np.testing.assert_array_equal(apply(inputs | {name: others[name]}), whole)
  other = inputs | {"speech_b": inputs["speech_b"].copy()}
  other["speech_b"][15] += 2
  moved = np.abs(apply(other) - whole).max(axis=-1)
  first = 15 if causal else 13  # Two layers that see a frame ahead.
  np.testing.assert_array_equal(moved[:first], 0)
  assert np.all(moved[first : first + 6] > 1e-6)


@pytest.mark.parametrize("frames", [31, 140])
def test_padded_clips_equal_clips_alone(frames):
  *_, apply = make()
  inputs = make_inputs(frames)
  padded = clips.pad_clip(**inputs)
  for name in inputs:
    padded[name][frames:] = 9.0
  alone = apply(inputs)
  assert alone.shape == (frames, 56) and alone.dtype == jnp.float32
  np.testing.assert_allclose(apply(padded)[:frames], alone, atol=2e-5 * np.abs(alone).max())


class Recorder(FaceDiffuser):
  """Tells what its network is asked."""

  def _denoise(self, voice, noisy, time, level, deterministic):
    record.append(dict(time=np.asarray(time), level=np.broadcast_to(level, time.shape), noisy=np.asarray(noisy), deterministic=deterministic))
    return super()._denoise(voice, noisy, time, level, deterministic)


record: list[dict] = []


def training_terms(kind, variables, progress, windows, **changes):
  inputs, motion_b = make_inputs(6, windows), make_inputs(6, windows, seed=1)["motion_a"]
  model = kind(motion_config(), **SMALL | changes)
  terms = lambda variables: model.apply(
      variables, **inputs, social=jnp.zeros((windows, 8)), motion_b=motion_b, progress=jnp.float32(progress),
      method="training_terms", rngs={"sample": KEY, "dropout": KEY},
  )  # fmt: skip
  return (terms if kind is Recorder else jax.jit(terms))(variables), motion_b


def test_the_loss_is_of_the_clean_motion_at_any_time():
  """A network that says 0: the target's squares, in z-scores; one time for a window, all times over many."""
  _, variables, _ = make()
  silent = {**variables, "params": variables["params"] | {"out": jax.tree.map(jnp.zeros_like, variables["params"]["out"])}}
  record.clear()
  terms, motion_b = training_terms(Recorder, silent, 0.0, 300)
  target = (motion_b - STATISTICS["motion_mean"]) / STATISTICS["motion_std"]
  assert terms.keys() == {"diffusion"}
  np.testing.assert_allclose(terms["diffusion"], np.square(target).mean(), rtol=1e-5)
  asked = record[0]
  assert len(record) == 1 and not asked["deterministic"]
  assert asked["time"].shape == (300,) and asked["time"].min() < 30 and asked["time"].max() > 970
  # What is told is the time of what is shown: without its share of the target, noise of the share's rest.
  left = cosine_schedule()[asked["time"]][:, None, None]
  noise = (asked["noisy"] - np.sqrt(left) * target) / np.sqrt(1 - left)
  np.testing.assert_allclose([noise.mean(), noise.std()], [0, 1], atol=0.02)
  assert np.abs(noise.std(axis=(1, 2)) - 1).max() < 0.2


EIGHT = dict(sampling_steps=16, distilled_steps=2)


def test_two_steps_of_a_constant_prediction_are_one():
  """The jumps then agree whatever the lengths, so that there is nothing to learn."""
  _, variables, _ = make(**EIGHT)
  zero = jnp.zeros_like(variables["params"]["out"]["kernel"])
  constant = {**variables, "params": variables["params"] | {"out": {"kernel": zero, "bias": jnp.linspace(-1, 1, 56)}}}
  terms, _ = training_terms(FaceDiffuser, constant, 0.9, 50, **EIGHT)
  assert terms.keys() == {"diffusion", "distillation"} and 0 <= terms["distillation"] < 1e-6
  terms, _ = training_terms(FaceDiffuser, variables, 0.9, 50, **EIGHT)
  assert terms["distillation"] > 1e-5


@pytest.mark.parametrize("progress, levels", [(0.0, {1}), (0.34, {1, 2}), (0.67, {1, 2, 3}), (1.0, {1, 2, 3})])
def test_steps_are_doubled_one_after_another(progress, levels):
  """The teacher is asked at both halves of a step for steps half as long, and the student at its start for the whole."""
  model, variables, _ = make(**EIGHT)
  assert model.halvings == 3
  record.clear()
  training_terms(Recorder, variables, progress, 200, **EIGHT)
  first, second, student = record
  level, time = student["level"][200:], student["time"][200:]
  times = np.array(trailing_times(16))
  step = np.searchsorted(times, time)
  np.testing.assert_array_equal(times[step], time)
  assert set(level.tolist()) == levels and not student["level"][:200].any()
  for each in levels:  # Steps begin at all multiples of their length.
    assert {int(k) + 1 for k in step[level == each]} == set(range(2**each, 17, 2**each))
  for asked, at in ((first, step), (second, step - 2 ** (level - 1))):
    np.testing.assert_array_equal(asked["time"], times[at])
    np.testing.assert_array_equal(asked["level"], level - 1)
    assert asked["deterministic"] and not student["deterministic"]
  np.testing.assert_array_equal(first["noisy"], student["noisy"][200:])


class Halving(FaceDiffuser):
  """Says that half of what it sees is clean."""

  def _denoise(self, voice, noisy, time, level, deterministic):
    return 0.5 * noisy


def test_one_step_leads_where_two_of_half_its_length_do():
  """By hand, for steps of each length and the last, which ends at clean motion."""
  model = Halving(motion_config(), **SMALL | EIGHT)
  variables = {"params": make(**EIGHT)[1]["params"], "statistics": STATISTICS}
  rng = np.random.default_rng(0)
  target, noise = rng.normal(size=(2, 4, 3, 56)).astype(np.float32)
  step, level = np.array([1, 11, 15, 7]), np.array([1, 2, 3, 3])
  far, wanted = model.apply(variables, jnp.zeros((4, 3, 8)), target, noise, step, level, method="_step_twice")
  left = np.append(cosine_schedule()[list(trailing_times(16))], 1.0)  # At -1, none of the steps is left.
  for i in range(4):
    half = 2 ** (level[i] - 1)
    start, middle, end = step[i], step[i] - half, step[i] - 2 * half

    def jump(x, clean, k, j):
      return np.sqrt(left[j]) * clean + np.sqrt((1 - left[j]) / (1 - left[k])) * (x - np.sqrt(left[k]) * clean)

    x = np.sqrt(left[start]) * target[i] + np.sqrt(1 - left[start]) * noise[i]
    np.testing.assert_allclose(far[i], x, atol=1e-5)
    near = jump(x, 0.5 * x, start, middle)
    np.testing.assert_allclose(jump(x, wanted[i], start, end), jump(near, 0.5 * near, middle, end), atol=1e-4)


def test_the_teacher_gets_no_gradient():
  """What is wanted of a step is taken as given: the gradient is that of the error against a constant."""
  _, variables, _ = make(**EIGHT)
  terms = lambda params: training_terms(FaceDiffuser, {**variables, "params": params}, 0.9, 4, **EIGHT)[0]["distillation"]
  gradient = jax.grad(terms)(variables["params"])["out"]["bias"]

  def moved_by(change):
    """By moving the student's output and not the teacher's, which is asked without dropout."""

    class Moved(FaceDiffuser):
      def _denoise(self, voice, noisy, time, level, deterministic):
        clean = super()._denoise(voice, noisy, time, level, deterministic)
        return clean if deterministic else clean + change * jnp.eye(56)[7]

    return float(training_terms(Moved, variables, 0.9, 4, **EIGHT)[0]["distillation"])

  found = [moved_by(change) for change in (-1e-2, 1e-2)]
  assert (found[1] - found[0]) / 2e-2 == pytest.approx(float(gradient[7]), rel=1e-2)


class Known(FaceDiffuser):
  """The best denoiser of motion whose values are N(1, 0.6²)."""

  def _denoise(self, voice, noisy, time, level, deterministic):
    super()._denoise(voice, noisy, time, level, deterministic)
    assert level == self.halvings  # Steps are as long as what was distilled.
    left = jnp.asarray(cosine_schedule(), jnp.float32)[time][..., None, None]
    return 1 + 0.36 * jnp.sqrt(left) / (0.36 * left + 1 - left) * (noisy - jnp.sqrt(left))


@pytest.mark.parametrize("steps, distilled", [(200, 0), (200, 100)])
def test_generating_recovers_a_known_gaussian(steps, distilled):
  model = Known(motion_config(), **SMALL | dict(sampling_steps=steps, distilled_steps=distilled))
  inputs = make_inputs(400)
  variables = jax.jit(model.init)(KEY, **inputs, social=SOCIAL)
  generate = jax.jit(lambda key: model.apply({**variables, "statistics": STATISTICS}, **inputs, social=SOCIAL, rngs={"sample": key}))
  motion = generate(KEY)
  normal = (motion - STATISTICS["motion_mean"]) / STATISTICS["motion_std"]
  # 22,400 values; by the posterior's variance the last steps are a little short of it.
  np.testing.assert_allclose([normal.mean(), normal.std()], [1, 0.6], atol=0.03)
  assert np.abs(generate(jax.random.key(4)) - motion).max() > 0.5


def test_lengths_of_steps_are_told_apart_where_they_are_distilled():
  model, variables, _ = make(**EIGHT)
  voice, noisy, time = jnp.zeros((3, 8)), jax.random.normal(KEY, (3, 56)), jnp.array(999)
  ask = lambda level, time=time: model.apply(variables, voice, noisy, time, level, True, method="_denoise")
  assert np.abs(ask(0) - ask(3)).max() > 1e-5 and np.abs(ask(0) - ask(0, jnp.array(400))).max() > 1e-5


def test_dropout_is_between_the_recurrences_and_drawn_in_training_alone():
  _, variables, apply = make()
  dry, _ = training_terms(FaceDiffuser, variables, 0.0, 4)
  wet, _ = training_terms(FaceDiffuser, variables, 0.0, 4, dropout=0.5)
  assert abs(dry["diffusion"] - wet["diffusion"]) > 1e-5
  np.testing.assert_array_equal(make(dropout=0.5)[2](make_inputs(30)), apply(make_inputs(30)))
