"""What the page of `export_avatar.py --live` computes against JAX's stream, over minutes of a run's unseen conversations; needs node.

    python benchmarks/live_page.py --workdir RUN [--avatar-from RUN] [--minutes 1]

Prints the largest differences of all frames and dimensions, in the motion's own units and in standard deviations of the run's motion:
of the page, and of JAX with weights rounded as the page has them and as float16; sizes of the page's parts; and CPU time a frame of
JavaScript, the median of seven measurements.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from rsatalker_jax.data.dualtalk import load_dualtalk
from rsatalker_jax.media import listener
from rsatalker_jax.media.tables import Tables
from rsatalker_jax.media.viewer import SCRIPTS
from rsatalker_jax.motion import MotionStream
from rsatalker_jax.runs import load_run
from rsatalker_jax.social import parse_relation
from rsatalker_jax.talker import make_log_mel
from rsatalker_jax.types import FPS, SAMPLES_PER_FRAME


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--avatar-from", help="a run on the same head that has an avatar, if --workdir has none")
  parser.add_argument("--minutes", type=float, default=1)
  options = parser.parse_args()
  run = load_run(options.workdir)
  shown = load_run(options.avatar_from) if options.avatar_from else run
  frames = round(60 * FPS * options.minutes)
  voice_a, voice_b, motion_a = read_voices(run, frames)

  settings, weights, relations = run.fold(options.workdir)
  name = relations[0]
  social = run.social_feature(parse_relation(name))
  variables = jax.device_get({**run.params["generator"], "statistics": run.buffers["generator"]})
  encoder = make_log_mel(run.config.speech)

  def stream(change) -> np.ndarray:
    changed = variables | {"params": jax.tree.map(change, variables["params"])}
    options = dict(encoder=encoder, level=run.config.speech.level, lengths=(25,))
    return MotionStream(run.talker.generator, changed, social, **options).push(voice_a, motion_a, voice_b)

  expected, std = stream(np.asarray), variables["statistics"]["motion_std"]
  show = lambda what, made: print(f"{what:32} {np.abs(made - expected).max():.1e} {np.abs((made - expected) / std).max():.1e}")
  print(f"{frames / FPS / 60:g} min, {name}; B's motion has a standard deviation of {(expected - expected.mean(axis=0)).std():.2g}")
  show("JAX, weights as float16", stream(lambda x: x.astype(np.float16).astype(np.float32)))
  show("JAX, weights in 16-bit steps", stream(in_steps))

  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    size = listener.write_listener(root / "page.html", shown.avatar, shown.talker.head, settings, weights, relations)
    scripts = [str(pathlib.Path(listener.__file__).parent / x) for x in (*SCRIPTS, "head.js", *listener.GENERATOR_SCRIPTS)]
    (root / "about.json").write_text(json.dumps({"scripts": scripts, "relation": 0, "frames": frames}))
    for key, values in (("voice_a", voice_a), ("voice_b", voice_b), ("motion_a", motion_a)):
      (root / key).write_bytes(np.ascontiguousarray(values, np.float32).tobytes())
    command = ["node", str(pathlib.Path(__file__).with_suffix(".js")), folder]
    times = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    show("page", np.frombuffer((root / "motion_b").read_bytes(), np.float32).reshape(-1, 56))
  print(f"page {size / 1e6:.2f} MB; packed, before base64:")
  for part, add in (
      ("generator", lambda tables: listener.add_weights(tables, weights)),
      ("head", lambda tables: tables.add_head(shown.avatar, shown.talker.head)),
      (f"{len(shown.avatar.binding)} Gaussians", lambda tables: add_avatar(tables, shown)),
  ):
    tables = Tables(options.workdir)
    add(tables)
    print(f"  {part:18} {len(tables.pack()) / 1e6:.2f} MB")
  for what, milliseconds in times.items():
    print(f"{what:32} {milliseconds:.2f} ms")


def add_avatar(tables: Tables, run) -> None:
  tables.add_gaussians(run.avatar, tables.add_triangles(run.avatar, run.talker.head))


def in_steps(x: np.ndarray) -> np.ndarray:
  least = x.min().astype(np.float64)
  step = (x.max() - least) / 65535 or 1.0
  return (least + np.round((x - least) / step) * step).astype(np.float32)


def read_voices(run, frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """So many frames of unseen conversations, one after the other."""
  pieces, count = ([], [], []), 0
  for conversation in load_dualtalk(run.data_path("conversations"), "test", default_relation="unknown"):
    length = len(conversation.motion_a)
    voices = (voice[: length * SAMPLES_PER_FRAME] for voice in (conversation.speech_a, conversation.speech_b))
    values = *voices, conversation.motion_a
    for piece, value in zip(pieces, values, strict=True):
      piece.append(value)
    count += length
    if count >= frames:
      break
  joined = [np.concatenate(piece) for piece in pieces]
  if count < frames:
    sys.exit(f"the test split has only {count / FPS:.0f} s")
  return joined[0][: frames * SAMPLES_PER_FRAME], joined[1][: frames * SAMPLES_PER_FRAME], joined[2][:frames]


if __name__ == "__main__":
  main()
