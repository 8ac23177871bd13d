"""How fast `motion.streaming` answers, and whether half an hour later it still answers the same.

    python benchmarks/streaming.py [--workdir RUN] [--models demo paper] [--ahead 0 3 8 -1] [--pushes 500] [--minutes 30] [--json FILE]

  demo   the run's causal generator, or configs/demo.py:causal with random parameters, from samples of both voices
  paper  the generator at the paper's size with random parameters, from 1024-wide features as a cache would have them

`--ahead` makes those of random parameters once for each value of `generator.own_lookahead`: B's voice is then given that many
frames ahead. A run has its own.

First pieces of 40 ms, 200 ms and 1 s are timed, of all models in turns: latency of a `push`, from numpy to numpy, and times real time. Then
one conversation runs in pieces of 40 ms (of the paper's size a tenth as long): against `generator.apply` on the whole,
and time per push, both in its first and in its last minute. Differences are the largest of all frames and dimensions, in
standard deviations of motion. Voices, motion and features are random.
"""

import argparse
import dataclasses
import functools
import json
import os
import sys
import time

import jax
import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from configs import demo, rsatalker
from rsatalker_jax.commands.config_values import check_values
from rsatalker_jax.errors import InputError
from rsatalker_jax.files import whole_file
from rsatalker_jax.motion import MotionConfig, MotionGenerator, MotionStream, streaming
from rsatalker_jax.social import parse_relation
from rsatalker_jax.speech import LogMel, logmel_features
from rsatalker_jax.talker import make_log_mel
from rsatalker_jax.runs import load_run
from rsatalker_jax.types import FPS, MOTION_DIM, SAMPLES_PER_FRAME
from splat_kernels.bench import time_in_turns

LENGTHS = (1, 5, 25)  # Frames: 40 ms, 200 ms, 1 s.
RELATION = parse_relation("blood,equal")
PAPER_SPEECH = 1024  # Width of Wav2Vec 2.0 large.


@dataclasses.dataclass(frozen=True)
class Model:
  """What is timed: a generator, its variables, s of `RELATION`, and the encoder of samples; None: features of
  `speech_features`."""

  generator: MotionGenerator
  variables: dict
  social: np.ndarray
  encoder: LogMel | None
  speech_features: int

  @property
  def unit(self) -> int:
    """Samples, or rows of features, of a frame."""
    return SAMPLES_PER_FRAME if self.encoder else 1


def make_model(name: str, workdir: str | None, ahead: int = 0) -> Model:
  if name == "demo" and workdir:
    run = load_run(workdir)
    if "generator" not in run.params or run.config.speech.encoder != "logmel":
      found = f"only {run.stages} with speech encoder {run.config.speech.encoder}"
      raise InputError(workdir, "", found, "a finished motion stage with logmel")
    encoder = make_log_mel(run.config.speech)
    variables = run.params["generator"] | {"statistics": run.buffers["generator"]}
    return Model(run.talker.generator, variables, run.talker.social_feature(run.params, RELATION), encoder, encoder.features)
  if name == "demo":
    config = demo.get_config("causal")
    encoder = make_log_mel(config.speech)
    width = encoder.features
  else:
    config = rsatalker.get_config("ours+causal")
    config.generator.dtype = "float32"  # The config's is for accelerators.
    encoder, width = None, PAPER_SPEECH
  config.generator.own_lookahead = ahead
  check_values(config)
  generator = MotionGenerator(MotionConfig(**config.generator))
  frame = lambda features: np.zeros((1, features), np.float32)
  inputs = frame(width), frame(MOTION_DIM), frame(width)
  social = np.random.default_rng(1).standard_normal(config.generator.features, np.float32)
  variables = jax.jit(generator.init)(jax.random.key(0), *inputs, social)
  variables["params"]["motion_decoder"]["motion"]["kernel"] *= 5.0  # Untrained output is near its mean.
  return Model(generator, variables, social, encoder, width)


def make_conversation(model: Model, frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Random voices (or features) of A and B, and motion of A of the size that the generator knows."""
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.standard_normal(shape, np.float32)
  statistics = model.variables["statistics"]
  motion = np.asarray(statistics["motion_mean"]) + normal(frames, MOTION_DIM) * np.asarray(statistics["motion_std"])
  if model.encoder is None:
    return normal(frames, model.speech_features), motion, normal(frames, model.speech_features)
  loudness = np.repeat(rng.uniform(0, 0.2, (2, frames)).astype(np.float32), model.unit, axis=1)
  voice_a, voice_b = loudness * normal(2, frames * model.unit)
  return voice_a, motion, voice_b


def push(stream: MotionStream, model: Model, conversation, start: int, length: int) -> np.ndarray:
  speech_a, motion_a, speech_b = conversation
  voice = slice(start * model.unit, (start + length) * model.unit)
  own = slice(voice.start + stream.frames_ahead * model.unit, voice.stop + stream.frames_ahead * model.unit)
  ended = own.stop >= len(speech_b) > own.start  # B's voice, where it is ahead.
  return stream.push(speech_a[voice], motion_a[start : start + length], speech_b[own], ended=ended)


def prime(stream: MotionStream, model: Model, conversation) -> None:
  """What B says before A is heard, where B's voice is ahead."""
  stream.prime(conversation[2][: stream.frames_ahead * model.unit])


def time_lengths(models: list[tuple[str, Model]], pushes: int) -> list[dict]:
  """Rows of the first table."""
  calls, streams, rows = {}, {}, []
  for name, model in models:
    conversation = make_conversation(model, max(LENGTHS) + model.generator.config.frames_ahead + 1)
    for length in LENGTHS:
      stream = MotionStream(model.generator, model.variables, model.social, encoder=model.encoder, lengths=(length,))
      prime(stream, model, conversation)
      key = name, stream.frames_ahead, length
      streams[key], calls[key] = stream, functools.partial(push, stream, model, conversation, 0, length)
  for key, times in time_in_turns(calls, pushes).items():
    name, ahead, length = key
    rows.append({
        "model": name,
        "frames_ahead": ahead,
        "piece_ms": 1000 * length / FPS,
        "times_real_time": 1000 * length / FPS / np.mean(times.wall),
        "least_ms": min(times.wall),  # Neighbours on the machine can only add to it.
        "median_ms": float(np.percentile(times.wall, 50)),
        "percentile_99_ms": float(np.percentile(times.wall, 99)),
        "state_bytes": streaming.state_bytes(streams[key].state),
    })
  return rows


def run_long(name: str, model: Model, minutes: float) -> dict:
  """A row of the second table: a conversation frame by frame, and the same at once."""
  frames, minute = round(60 * FPS * minutes), 60 * FPS
  conversation = make_conversation(model, frames)
  stream = MotionStream(model.generator, model.variables, model.social, encoder=model.encoder, lengths=(1,))
  prime(stream, model, conversation)
  made, times, before = np.zeros((frames, MOTION_DIM), np.float32), np.zeros(frames), streaming.state_bytes(stream.state)
  for frame in range(frames):
    begin = time.perf_counter()
    made[frame] = push(stream, model, conversation, frame, 1)[0]
    times[frame] = 1e3 * (time.perf_counter() - begin)
  speech_a, motion_a, speech_b = conversation
  if model.encoder:
    encode = logmel_features(model.encoder)
    speech_a, speech_b = encode(speech_a, frames), encode(speech_b, frames)
  whole = np.asarray(jax.jit(model.generator.apply)(model.variables, speech_a, motion_a, speech_b, model.social))
  std = np.asarray(model.variables["statistics"]["motion_std"])
  difference = (np.abs(made - whole) / std).max(axis=1)
  return {
      "model": name,
      "frames_ahead": stream.frames_ahead,
      "minutes": minutes,
      "output_std": float((whole / std).std(axis=0).mean()),
      "difference_first": float(difference[:minute].max()),
      "difference_last": float(difference[-minute:].max()),
      "difference": float(difference.max()),
      "median_ms_first": float(np.median(times[:minute])),
      "median_ms_last": float(np.median(times[-minute:])),
      "percentile_99_ms": float(np.percentile(times, 99)),
      "state_grew_bytes": streaming.state_bytes(stream.state) - before,
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", help="a run of configs/demo.py:causal")
  parser.add_argument("--models", nargs="+", choices=("demo", "paper"), default=("demo", "paper"))
  parser.add_argument("--ahead", nargs="+", type=int, default=(0,), help="values of generator.own_lookahead, of random parameters")
  parser.add_argument("--pushes", type=int, default=500, help="of each length, that count")
  parser.add_argument("--minutes", type=float, default=30.0, help="of the long conversation; at least 1")
  parser.add_argument("--json", help="file to write the numbers to")
  args = parser.parse_args()
  if args.pushes < 1 or args.minutes < 1:
    parser.error("--pushes and --minutes must be at least 1")

  long = []
  try:
    models = []
    for name in args.models:
      of_run = name == "demo" and args.workdir
      models += [(name, make_model(name, args.workdir, ahead)) for ahead in ((0,) if of_run else args.ahead)]
    rows = time_lengths(models, args.pushes)
  except InputError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  device = f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, jax {jax.__version__}"
  print(f"{device}; {args.pushes} pushes of each length\n")
  print("| model | frames ahead | piece | × real time | least, ms | median | 99th percentile | state, kB |")
  print("|---|---:|---:|---:|---:|---:|---:|---:|")
  for row in rows:
    cells = "| {model} | {frames_ahead} | {piece_ms:.0f} ms | {times_real_time:.1f} | {least_ms:.2f} | {median_ms:.2f} | {percentile_99_ms:.2f} | "
    print(cells.format(**row) + f"{row['state_bytes'] / 1000:.0f} |", flush=True)
  print("\n| model | frames ahead | minutes | difference, first minute | last minute | median ms, first minute | last minute |\n"
        "|---|---:|---:|---:|---:|---:|---:|")
  for name, model in models:
    long.append(run_long(name, model, args.minutes if name == "demo" else max(1.0, args.minutes / 10)))
    print("| {model} | {frames_ahead} | {minutes:.0f} | {difference_first:.1e} | {difference_last:.1e} | {median_ms_first:.2f} | "
          "{median_ms_last:.2f} |".format(**long[-1]), flush=True)
  if args.json:
    with whole_file(args.json) as file:
      file.write((json.dumps({"device": device, "lengths": rows, "long": long}, indent=2) + "\n").encode())


if __name__ == "__main__":
  main()
