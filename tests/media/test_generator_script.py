"""The generator and what it hears in JavaScript, against JAX's stream."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from media.scripts import run_scripts
from motion_configs import motion_config
from rsatalker_jax.motion import MotionGenerator, MotionStream, streaming
from rsatalker_jax.motion.folding import fold_generator
from rsatalker_jax.speech import LogMel
from rsatalker_jax.speech.level import level_voice
from rsatalker_jax.speech.logmel import to_frames

SCRIPTS = ["hearing.js", "layers.js", "generator.js"]
FULL = dict(
    features=8, heads=2, reach=5, encoder_layers=1, decoder_layers=2, speech_hidden=12, speech_layers=2, speech_kernel=3,
    motion_kernel=5, motion_stride=2, dropout=0.0, query_time=True, social_norm=True, causal=True,
)  # fmt: skip
BARE = FULL | dict(
    speech_layers=1, speech_kernel=1, motion_kernel=1, motion_stride=1, query_time=False, social_norm=False, residual=False
)

PLAY = """({ settings, weights, voiceA, voiceB, motionA, relations }) => {
  const stream = new MotionStream({ settings, weights });
  const hearing = [voiceA, voiceB].map(() => new Hearing(settings.speech)), frames = relations.length, { ahead } = settings;
  const out = new Float32Array(56 * frames), hear = (i, t) => hearing[i].push([voiceA, voiceB][i].subarray(640 * t, 640 * (t + 1)));
  for (let t = 0; t < ahead; t++) stream.prime(hear(1, t));
  for (let t = 0; t < frames; t++) {
    const a = hear(0, t), b = hear(1, t + ahead);
    out.set(stream.push(a, motionA.subarray(56 * t, 56 * (t + 1)), b, relations[t]), 56 * t);
  }
  return out;
}"""


def random_generator(encoder: LogMel, **changes):
  """A generator, random variables with an output of the size of real motion, and s of three relations."""
  generator = MotionGenerator(motion_config(**changes))
  width, features = encoder.features, generator.config.features
  frame = jnp.zeros((1, width))
  shapes = jax.eval_shape(generator.init, jax.random.key(0), frame, jnp.zeros((1, 56)), frame, jnp.zeros(features))
  rng = np.random.default_rng(1)
  draw = lambda x: (rng.normal(size=x.shape) / np.sqrt(x.shape[0] if len(x.shape) == 2 else 10)).astype(np.float32)
  variables = {"params": jax.tree.map(draw, shapes["params"])}
  variables["statistics"] = {
      "motion_mean": np.linspace(-0.5, 0.5, 56, dtype=np.float32),
      "motion_std": np.linspace(0.1, 1.5, 56, dtype=np.float32),
  }
  params = variables["params"]
  lookahead = [params["own_lookahead"][name]["norm"] for name in ("attention_norm", "mlp_norm") if "own_lookahead" in params]
  for norm in (params["motion_decoder"]["norm"], params["speech_adapter"]["norm"], *lookahead):
    norm["scale"] += 1.0  # So that something moves.
  return generator, variables, rng.normal(size=(3, features)).astype(np.float32)


def conversation(frames: int):
  """Two voices that pause, differ in loudness and hold silence; and A's motion."""
  rng = np.random.default_rng(0)
  wavs = (rng.normal(size=(2, frames * 640)) * np.array([[0.02], [0.2]])).astype(np.float32)
  time = np.arange(frames * 640) / 16000
  wavs *= np.maximum(0, np.sin(2 * np.pi * np.array([[0.7], [0.9]]) * time)).astype(np.float32) ** 2
  wavs[0, : 3 * 640] = 0
  wavs[1] += 0.001 * rng.normal(size=wavs.shape[1])
  return wavs, rng.normal(size=(frames, 56)).astype(np.float32)


def speech_settings(encoder: LogMel, level: bool):
  return {"mels": encoder.num_mels, "hop": encoder.hop, "context": encoder.context, "level": level}


def play(generator, variables, socials, encoder, level, wavs, motion_a, relations, folder):
  settings, weights = fold_generator(generator, variables, socials)
  settings["speech"] = speech_settings(encoder, level)
  inputs = dict(voiceA=wavs[0], voiceB=wavs[1], motionA=motion_a, relations=relations)
  return run_scripts(SCRIPTS, PLAY, folder, settings=settings, weights=weights, **inputs).reshape(-1, 56)


@pytest.mark.parametrize("changes, level, encoder", [
    (FULL, True, LogMel(num_mels=5, causal=True)),
    (BARE, False, LogMel(num_mels=3, context=3, causal=True)),
    (FULL | dict(use_partner=False, heads=1), False, LogMel(num_mels=4, hop=320, context=1, causal=True)),
    # Its own voice ahead: by the convolutions alone; by attention too; as far as can be, where they hear but one frame.
    (FULL | dict(own_lookahead=2, speech_layers=2, query_time=False), True, LogMel(num_mels=3, causal=True)),
    (FULL | dict(own_lookahead=6, query_time=False), True, LogMel(num_mels=3, causal=True)),
    (BARE | dict(own_lookahead=-1), False, LogMel(num_mels=3, causal=True)),
    (BARE | dict(use_own_speech=False, residual=True), True, LogMel(num_mels=4, hop=80, context=2, causal=True)),
])  # fmt: skip
def test_scripts_give_the_motion_of_the_stream(tmp_path, changes, level, encoder):
  """Over more frames than the 800 after which the encoding of time repeats itself."""
  frames = 810 if changes.get("query_time") else 60
  generator, variables, socials = random_generator(encoder, **changes)
  ahead = generator.config.frames_ahead
  wavs, motion_a = conversation(frames + ahead)
  motion_a = 10 * motion_a[:frames]  # So that a wrong standardisation shows.
  stream = MotionStream(generator, variables, socials[1], encoder=encoder, level=level, lengths=(10,))
  stream.prime(wavs[1, : 640 * ahead])
  expected = stream.push(wavs[0, : 640 * frames], motion_a, wavs[1, 640 * ahead :])
  assert 0.02 < (expected - expected.mean(axis=0)).std() < 3.0
  made = play(generator, variables, socials, encoder, level, wavs, motion_a, [1] * frames, tmp_path / "a")
  np.testing.assert_allclose(made, expected, rtol=0, atol=5e-5)


def test_relation_changes_while_they_talk(tmp_path):
  encoder, frames = LogMel(num_mels=3, causal=True), 24
  generator, variables, socials = random_generator(encoder, **FULL)
  wavs, motion_a = conversation(frames)
  relations = [0] * 7 + [2] * 8 + [1] * 9
  state, expected = streaming.init_state(generator, variables, encoder=encoder), []
  step = jax.jit(lambda state, *inputs: streaming.step(generator, variables, state, *inputs, encoder=encoder))
  for t in range(frames):
    a, b = wavs[:, 640 * t : 640 * (t + 1)]
    state, motion = step(state, a, motion_a[t : t + 1], b, socials[relations[t]])
    expected.append(motion[0])
  made = play(generator, variables, socials, encoder, False, wavs, motion_a, relations, tmp_path / "a")
  np.testing.assert_allclose(made, np.stack(expected), rtol=0, atol=5e-5)
  assert np.abs(made - play(generator, variables, socials, encoder, False, wavs, motion_a, [0] * frames, tmp_path / "b")).max() > 0.1


def test_voice_is_heard_as_the_encoder_hears_it(tmp_path):
  """Log-mel of every filter of the demo, and samples at one level."""
  encoder, frames = LogMel(causal=True), 20
  wav = conversation(frames)[0][1]
  main = """({ voice, settings, level }) => {
    const hearing = level ? new Level() : new LogMel(settings), out = [];
    for (let t = 0; 640 * t < voice.length; t++) out.push(...hearing.push(voice.subarray(640 * t, 640 * (t + 1))));
    return Float32Array.from(out);
  }"""
  hear = lambda level, folder: run_scripts(
      ["hearing.js"], main, tmp_path / folder, voice=wav, settings=speech_settings(encoder, False), level=level
  )
  expected = to_frames(np.asarray(encoder.apply({}, wav)), frames)
  np.testing.assert_allclose(hear(False, "a").reshape(frames, -1), expected, rtol=0, atol=2e-5)
  levelled = level_voice(wav)
  assert np.abs(levelled - wav).max() > 0.1
  np.testing.assert_allclose(hear(True, "b"), levelled, rtol=0, atol=1e-5)
