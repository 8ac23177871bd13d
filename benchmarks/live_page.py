"""What the page of `export_avatar.py --live` computes against JAX's stream, over minutes of a run's unseen conversations; needs node.

    python benchmarks/live_page.py --workdir RUN [--avatar-from RUN] [--minutes 1] [--gaussians 20000] [--json FILE]

Prints the largest differences of all frames and dimensions, in the motion's own units and in standard deviations of the run's motion:
of the page, and of JAX with weights rounded as the page has them and as float16; where the avatar has offset corrections (Eq. 8), how far
those are, in millimetres, and how large; sizes of the page and of its parts; and CPU time of JavaScript a frame, the median of seven
measurements and the least. `--gaussians`: the avatar has so many for sizes and times, its own repeated or left out.
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
from rsatalker_jax.avatar import Avatar
from rsatalker_jax.data.dualtalk import load_dualtalk
from rsatalker_jax.files import whole_file
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
  parser.add_argument("--gaussians", type=int, help="how many the avatar has for sizes and times; its own number if not given")
  parser.add_argument("--json", help="file to write the numbers to")
  options = parser.parse_args()
  run = load_run(options.workdir)
  shown = load_run(options.avatar_from) if options.avatar_from else run
  frames, ahead = round(60 * FPS * options.minutes), run.talker.generator.config.frames_ahead
  voice_a, voice_b, motion_a = read_voices(run, frames + ahead)
  voice_a, motion_a, beginning = voice_a[: frames * SAMPLES_PER_FRAME], motion_a[:frames], voice_b[: ahead * SAMPLES_PER_FRAME]

  settings, weights, relations = run.fold(options.workdir)
  name = relations[0]
  social = run.social_feature(parse_relation(name))
  variables = jax.device_get({**run.params["generator"], "statistics": run.buffers["generator"]})
  encoder = make_log_mel(run.config.speech)

  def stream(change) -> np.ndarray:
    changed = variables | {"params": jax.tree.map(change, variables["params"])}
    options = dict(encoder=encoder, level=run.config.speech.level, lengths=(25,))
    stream = MotionStream(run.talker.generator, changed, social, **options)
    stream.prime(beginning)
    return stream.push(voice_a, motion_a, voice_b[len(beginning) :])

  expected, std = stream(np.asarray), variables["statistics"]["motion_std"]
  numbers = {"minutes": options.minutes, "differences": {}, "megabytes": {}, "milliseconds": {}}

  def show(what: str, made: np.ndarray) -> None:
    differences = float(np.abs(made - expected).max()), float(np.abs((made - expected) / std).max())
    numbers["differences"][what] = differences
    print(f"{what:32} {differences[0]:.1e} {differences[1]:.1e}")

  print(f"{frames / FPS / 60:g} min, {name}; B's motion has a standard deviation of {(expected - expected.mean(axis=0)).std():.2g}")
  show("JAX, weights as float16", stream(lambda x: x.astype(np.float16).astype(np.float32)))
  show("JAX, weights in 16-bit steps", stream(in_steps))

  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    avatar = shown.avatar if options.gaussians is None else with_gaussians(shown.avatar, options.gaussians)
    folded = shown.fold_offsets(relations)
    size = listener.write_listener(root / "page.html", avatar, shown.talker.head, settings, weights, relations, offsets=folded)
    scripts = [str(pathlib.Path(listener.__file__).parent / x) for x in (*SCRIPTS, "head.js", *listener.GENERATOR_SCRIPTS, "offsets.js")]
    (root / "about.json").write_text(json.dumps({"scripts": scripts, "relation": 0, "frames": frames}))
    for key, values in (("voice_a", voice_a), ("voice_b", voice_b), ("motion_a", motion_a)):
      (root / key).write_bytes(np.ascontiguousarray(values, np.float32).tobytes())
    command = ["node", str(pathlib.Path(__file__).with_suffix(".js")), folder]
    times = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    motion_b = np.frombuffer((root / "motion_b").read_bytes(), np.float32).reshape(-1, 56)
    show("page", motion_b)
    if folded is not None:
      every = np.arange(frames)
      true = np.asarray(shown.gaussian_offsets(parse_relation(name), every, motion_b)(every[-1:]))[0]
      made = np.frombuffer((root / "offsets").read_bytes(), np.float32).reshape(true.shape)
      bound = np.unique(avatar.binding)
      numbers["offsets_mm"] = [1000 * float(np.linalg.norm(x[bound], axis=-1).max()) for x in (made - true, true)]
      print("offset corrections of the last frame, mm: differ by {:.1e}, are up to {:.2g}".format(*numbers["offsets_mm"]))
  print(f"page {size / 1e6:.2f} MB; packed, before base64:")
  head = shown.talker.head
  for part, add in (
      ("generator", lambda tables: tables.add_arrays(weights)),
      ("head", lambda tables: tables.add_head(avatar, head)),
      (f"{len(avatar.binding)} Gaussians", lambda tables: tables.add_gaussians(avatar, tables.add_triangles(avatar, head))),
      ("corrections", lambda tables: folded and tables.add_offsets(avatar, Tables("").add_triangles(avatar, head), folded)),
  ):
    tables = Tables(options.workdir)
    add(tables)
    numbers["megabytes"][part] = len(tables.pack()) / 1e6
    print(f"  {part:18} {numbers['megabytes'][part]:.2f} MB")
  numbers["megabytes"]["page"] = size / 1e6
  numbers["milliseconds"] = times
  show_times = lambda what, median, least: print(f"{what:44} {median:.2f} ms, least {least:.2f}")
  for what, found in times.items():
    show_times(what, *found)
  show_times("a picture, sum", *(sum(times[what][i] for what in times if what.startswith("picture:")) for i in (0, 1)))
  if options.json:
    with whole_file(options.json) as file:
      file.write((json.dumps(numbers, indent=2) + "\n").encode())


def with_gaussians(avatar: Avatar, count: int) -> Avatar:
  """With so many: the first ones, after all of them again and again."""
  order = np.arange(count) % len(avatar.binding)
  return avatar.replace(gaussians=jax.tree.map(lambda x: x[order], avatar.gaussians), binding=avatar.binding[order])


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
