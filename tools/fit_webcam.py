"""Fits the map from a webcam's tracker to motion: renders heads whose motion is known, has the tracker look at them, and solves.

    python -m rsatalker_jax tracker                                        # once
    python tools/fit_webcam.py render --workdir runs/demo --work W         # pictures; can be stopped and started again
    python tools/fit_webcam.py track  --work W                             # what the tracker finds in them, in Chromium
    python tools/fit_webcam.py fit    --work W [--out rsatalker_jax/live/webcam_map.json]

Pictures are of a run's avatars, on all identities of the head, in several lights, before several cameras and backgrounds; their motion
is the simulator's in three of four settings and random in the fourth, which counts less: what faces do together tells of what the
tracker does not see, and random motion keeps that from being all. Each setting begins at rest, as the page's calibration has it.
The films of assets/capture* are no part of the fit (--films makes them one): a path tracer made them, so they tell how the map does
elsewhere. The tracker runs as in the page, tracker_worker.js included.
"""

import argparse
import asyncio
import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import sys
import tempfile

import numpy as np
import scipy.ndimage
from scipy.spatial.transform import Rotation

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from rsatalker_jax.evaluation.tables import markdown_table
from rsatalker_jax.files import whole_file
from rsatalker_jax.types import ARKIT_EXPRESSIONS, EXPRESSION_DIM, MOTION_DIM, MOTION_GROUPS

ASSETS = pathlib.Path(__file__).parents[1] / "assets"
SIZE = 256
REST, MOVING = 20, 100  # Frames of a setting.
SETTINGS = 40
NAMES = (*ARKIT_EXPRESSIONS, "jaw open", "jaw left", "jaw tilt", "head pitch", "head yaw", "head tilt")
# What a map may say: coefficients in [0, 1], radians. What turns the jaw about y and z no tracker's output tells.
LEAST = np.array([0.0] * EXPRESSION_DIM + [0.0] * 3 + [-0.6, -0.9, -0.6])
MOST = np.array([1.0] * EXPRESSION_DIM + [0.45, 0.0, 0.0] + [0.6, 0.9, 0.6])
RIDGES = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03)
RANDOM_SHARE = 0.05  # Of what another setting counts in the fit.
FILM_SPLITS = {"train": "film", "test": "unseen film"}


# --- Pictures


def random_motion(rng: np.random.Generator, count: int) -> np.ndarray:
  """(count, 56): every coefficient at times, smoothly, both sides mostly alike."""

  def waves(width: int, frames: float) -> np.ndarray:
    slow = scipy.ndimage.gaussian_filter1d(rng.normal(size=(count + 200, width)), frames, axis=0)[100:-100]
    return slow * np.sqrt(2 * frames * np.sqrt(np.pi))

  motion = np.zeros((count, MOTION_DIM))
  motion[:, MOTION_GROUPS["expression"]] = np.clip(0.7 * waves(EXPRESSION_DIM, rng.uniform(2, 6)) - 0.55, 0, 1)
  for i, name in enumerate(ARKIT_EXPRESSIONS):
    if name.endswith("Left") and rng.random() < 0.7:
      motion[:, ARKIT_EXPRESSIONS.index(name[:-4] + "Right")] = motion[:, i] * rng.uniform(0.85, 1.15)
  motion[:, :EXPRESSION_DIM] = motion[:, :EXPRESSION_DIM].clip(0, 1)
  motion[:, MOTION_GROUPS["jaw"].start] = np.clip(0.16 * waves(1, 3)[:, 0] + 0.02, 0, 0.42)
  motion[:, MOTION_GROUPS["pose"]] = waves(3, 6) * (0.12, 0.2, 0.1)
  return motion


def simulated_motion(rng: np.random.Generator, count: int) -> np.ndarray:
  """A stretch of somebody in a training dialogue."""
  from rsatalker_jax.data.demo import dyads, voices

  dialogues = [dialogue for dialogue in voices.load_dialogues() if dialogue.split == "train"]
  dialogue = dialogues[rng.integers(len(dialogues))]
  motion = dyads.simulate_dyad(dialogue, int(rng.integers(100, 1000))).motion[rng.integers(2)]
  start = int(rng.integers(max(len(motion) - count, 0) + 1))
  return motion[start : start + count].astype(np.float64)


def is_random(number: int) -> bool:
  return number % 4 == 1


def make_motion(number: int) -> np.ndarray:
  """A setting's motion: at rest, then, softly, moving."""
  rng = np.random.default_rng((1, number))
  moving = (random_motion if is_random(number) else simulated_motion)(rng, MOVING)
  moving = moving * np.minimum(np.arange(1, len(moving) + 1) / 5, 1)[:, None]
  return np.concatenate([np.zeros((REST, MOTION_DIM)), moving]).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Look:
  """Who is seen how.

  Attributes:
    person, identity: of the run's people, whose looks they are; of the head's identities, whose shape it is.
    yaw, pitch, distance, shift: of the camera, radians, metres; and in the picture's plane, metres.
    background: RGB.
    gain, gamma, warmth, side, noise: of the light and the sensor.
  """

  person: int
  identity: int
  yaw: float
  pitch: float
  distance: float
  shift: tuple[float, float]
  background: tuple[float, float, float]
  gain: float
  gamma: float
  warmth: float
  side: float
  noise: float

  @classmethod
  def of_setting(cls, number: int, people: int, identities: int) -> "Look":
    rng = np.random.default_rng((2, number))
    draw = lambda least, most: float(rng.uniform(least, most))
    pair = number // 2
    return cls(
        (pair + pair // identities) % people, pair % identities,
        draw(-0.2, 0.2), draw(-0.25, 0.2), draw(0.75, 1.2), (draw(-0.03, 0.03), draw(-0.03, 0.03)), tuple(rng.uniform(0, 1, 3).tolist()),
        draw(0.6, 1.25), draw(0.8, 1.3), draw(-0.12, 0.12), draw(-0.5, 0.5), draw(0, 0.03),
    )  # fmt: skip

  def light(self, image: np.ndarray, alpha: np.ndarray, under: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A picture (H, W, 3) in [0, 1] over `under` as the webcam gives it."""
    image = image + (np.asarray(self.background) - under) * (1 - alpha)
    across = np.linspace(-1, 1, image.shape[1])[None, :, None]
    image = self.gain * image * (1 + self.side * across) * (1 + self.warmth, 1, 1 - self.warmth)
    return np.clip(np.clip(image, 0, 1) ** self.gamma + self.noise * rng.normal(size=image.shape), 0, 1)

  def camera(self, head):
    import splat_kernels
    from rsatalker_jax.media.viewer import front_view

    view = front_view(head)
    turn = np.diag([1.0, -1.0, -1.0]) @ Rotation.from_euler("xy", [self.pitch, self.yaw]).as_matrix()
    pose = np.eye(4, dtype=np.float32)
    pose[:3, :3], pose[:3, 3] = turn, np.array([*self.shift, self.distance]) - turn @ np.array(view["target"])
    focal = view["focal"] * SIZE * 0.9
    return splat_kernels.Camera(pose, np.array([[focal, 0, SIZE / 2], [0, focal, SIZE / 2], [0, 0, 1]], np.float32), SIZE, SIZE)


def write_pictures(path: pathlib.Path, pictures, motion: np.ndarray, **about) -> None:
  import io

  from PIL import Image

  coded = []
  for picture in pictures:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=92)
    coded.append(np.frombuffer(buffer.getvalue(), np.uint8))
  with whole_file(path) as file:
    np.savez(file, pixels=np.concatenate(coded), sizes=np.array([len(x) for x in coded]), motion=motion, **about)


def render(args: argparse.Namespace) -> None:
  import jax

  from rsatalker_jax.avatar import wear
  from rsatalker_jax.head import pose_for
  from rsatalker_jax.media.video import to_uint8
  from rsatalker_jax.runs import load_run

  folder = pathlib.Path(args.work) / "pictures"
  write_films(folder)
  run = load_run(args.workdir)
  talker, head = run.talker, run.talker.head
  draw = jax.jit(talker.render)
  identities = np.asarray(head.identities)
  for number in range(args.settings):
    path = folder / f"rendered_{number:03d}.npz"
    if path.exists():
      continue
    look = Look.of_setting(number, max(len(run.names), 1), len(identities))
    person = run.of_person(look.person)
    avatar = person.avatar
    shape = np.zeros_like(np.asarray(avatar.shape))
    shape[: identities.shape[1]] = identities[look.identity, : len(shape)]
    avatar = wear(avatar, head, shape)
    motion = make_motion(number)
    flame = jax.tree.map(np.asarray, pose_for(motion))
    camera, rng, pictures = look.camera(head), np.random.default_rng((3, number)), []
    for start in range(0, len(motion), args.chunk):
      part = {name: values[start : start + args.chunk] for name, values in flame.items()}
      output = draw(avatar, part, camera)
      while int(output.overflow.max()):
        draw = jax.jit(talker.with_room(int(1.2 * output.intersections.max())).render)
        output = draw(avatar, part, camera)
      for image, alpha in zip(np.asarray(output.image), np.asarray(output.alpha)):
        pictures.append(to_uint8(look.light(image, alpha.reshape(SIZE, SIZE, 1), np.asarray(talker.background), rng)))
    kind = "random" if is_random(number) else "simulated"
    write_pictures(path, pictures, motion, rest=REST, kind=kind, group=f"identity {look.identity}")
    print(f"{path}: {kind}, identity {look.identity}, {len(pictures)} pictures", flush=True)


def write_films(folder: pathlib.Path) -> None:
  """The films' conversations from the front, with the moments at which they are nearest to rest in front."""
  from rsatalker_jax.data.video_frames import read_video_frame

  for capture in sorted(ASSETS.glob("capture*")):
    with np.load(capture / "capture.npz", allow_pickle=False) as file:
      table = dict(file)
    motion = np.concatenate([table["expr"], table["jaw_pose"], table["neck_pose"]], axis=1)
    for name, split, first, count in zip(*(table[key] for key in ("conversation", "conversation_split", "first_timestep", "num_frames"))):
      path = folder / f"film_{table['identity']}_{name.split('_')[0]}.npz"
      if path.exists():
        continue
      frames = np.flatnonzero((table["timesteps_0"] >= first) & (table["timesteps_0"] < first + count))
      shown = motion[table["timesteps_0"][frames]]
      # The face first: a head that looks aside is at rest, too, and what it turns from then.
      still = np.abs(shown[:, : EXPRESSION_DIM + 1]).sum(1) + 3 * np.abs(shown[:, MOTION_GROUPS["pose"]]).sum(1)
      order = np.concatenate([np.sort(np.argsort(still)[:REST]), np.arange(len(frames))])
      pictures = [read_video_frame(capture / "camera_0.mp4", int(frames[i])) for i in order]
      write_pictures(path, pictures, shown[order], rest=REST, kind=FILM_SPLITS[str(split)], group=str(table["identity"]))
      print(f"{path}: {len(pictures)} pictures", flush=True)


# --- What the tracker finds

_PAGE = """<!DOCTYPE html><script src="look.js" defer></script>"""
_SCRIPT = """"use strict";
(async () => {
  const worker = new Worker("/tracker/tracker_worker.js"), told = [];
  let wake = () => {};
  worker.onmessage = ({ data }) => { told.push(data); wake(); };
  worker.onerror = (event) => { told.push({ trouble: event.message }); wake(); };
  const hear = async () => {
    while (!told.length) await new Promise((resolve) => { wake = resolve; });
    const data = told.shift();
    if (data.trouble) throw new Error(data.trouble);
    return data;
  };
  const post = (path, data) => fetch(path, { method: "POST", body: JSON.stringify(data) });
  let names = [], time = 0;
  try {
    await hear();
    for (const [name, count] of await (await fetch("/list")).json()) {
      const found = [], begun = performance.now();
      time += 2000;
      for (let i = 0; i < count; i++) {
        const picture = await createImageBitmap(await (await fetch(`/picture/${name}/${i}`)).blob());
        time += 40;
        worker.postMessage({ picture, time }, [picture]);
        let data = await hear();
        if (data.names) names = data.names, data = await hear();
        found.push(data.scores ? [...data.scores, ...data.matrix] : null);
      }
      await post(`/found/${name}`, { names, found, milliseconds: (performance.now() - begun) / count });
    }
    await post("/end", null);
  } catch (error) {
    await post("/end", String(error));
  }
})();
"""


def track(args: argparse.Namespace) -> None:
  from rsatalker_jax.commands.tracker import tracker_folder
  from rsatalker_jax.live.tracker import load_tracker

  work = pathlib.Path(args.work)
  waiting = [path for path in sorted((work / "pictures").glob("*.npz")) if not (work / "outputs" / path.name).exists()]
  if waiting:
    asyncio.run(_track(load_tracker(tracker_folder(args.tracker)), waiting, work / "outputs"))


async def _track(files: dict[str, bytes], paths: list[pathlib.Path], out: pathlib.Path) -> None:
  from rsatalker_jax.live.camera import Camera
  from rsatalker_jax.web import serving
  from rsatalker_jax.web.serving import web

  coded = {}
  for path in paths:
    with np.load(path) as file:
      ends = np.cumsum(file["sizes"])
      coded[path.stem] = [part.tobytes() for part in np.split(file["pixels"], ends[:-1])]
  ended = asyncio.get_running_loop().create_future()

  async def list_pictures(_):
    return web.json_response([[name, len(parts)] for name, parts in coded.items()])

  async def get_picture(request):
    return web.Response(body=coded[request.match_info["name"]][int(request.match_info["number"])], content_type="image/jpeg")

  async def take(request):
    name, data = request.match_info["name"], await request.json()
    count = len(data["names"])
    rows = [[np.nan] * (count + 16) if row is None else row for row in data["found"]]
    values = np.array(rows, np.float32)
    with whole_file(out / f"{name}.npz") as file:
      np.savez(file, scores=values[:, :count], matrix=values[:, count:], names=np.array(data["names"]))
    lost = sum(row is None for row in data["found"])
    print(f"{out / name}.npz: {data['milliseconds']:.0f} ms a picture, no face in {lost} of {len(rows)}", flush=True)
    return web.Response()

  async def end(request):
    ended.set_result(await request.json())
    return web.Response()

  app = web.Application(client_max_size=1 << 28)
  Camera({}, files).add_to(app)
  for path, content, kind in (("/", _PAGE, "text/html"), ("/look.js", _SCRIPT, "text/javascript")):
    async def get_text(_, content=content, kind=kind):
      return web.Response(text=content, content_type=kind)

    app.router.add_get(path, get_text)
  app.router.add_get("/list", list_pictures)
  app.router.add_get("/picture/{name}/{number}", get_picture)
  app.router.add_post("/found/{name}", take)
  app.router.add_post("/end", end)
  listener = serving.open_listener("127.0.0.1", 0)
  runner = await serving.start_server(app, listener)
  browser = shutil.which("chromium-headless-shell") or shutil.which("chromium") or sys.exit("error: no Chromium on the PATH")
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:  # The browser may be writing still.
    flags = "--headless --no-sandbox --use-angle=swiftshader --enable-unsafe-swiftshader --remote-debugging-port=0".split()
    command = [browser, *flags, f"--user-data-dir={profile}", f"http://127.0.0.1:{listener.getsockname()[1]}/"]
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, stdout=quiet, stderr=quiet, start_new_session=True)
    try:
      trouble = await ended
    finally:
      os.killpg(process.pid, signal.SIGTERM)  # Debian's is a script that starts the browser.
      await process.wait()
      await runner.cleanup()
  if trouble:
    sys.exit(f"error: the tracker: {trouble}")


# --- The fit


@dataclasses.dataclass(frozen=True)
class Setting:
  """Pictures of one face: what the tracker's outputs differ by from its rest, and what its motion does.

  Attributes:
    name, kind, group: of it, of its motion, and whom it shows.
    features: (T, F) as FaceMap of webcam.js has them.
    motion: (T, 56), its rest being 0.
  """

  name: str
  kind: str
  group: str
  features: np.ndarray
  motion: np.ndarray


def rotations(matrix: np.ndarray) -> np.ndarray:
  """(T, 3, 3) rotations in (T, 16) transformations, whose numbers stand by columns: rotationOf of webcam.js."""
  x, y = matrix[:, 0:3], matrix[:, 4:7]
  x = x / np.linalg.norm(x, axis=1, keepdims=True)
  y = y - (x * y).sum(1, keepdims=True) * x
  y = y / np.linalg.norm(y, axis=1, keepdims=True)
  return np.stack([x, y, np.cross(x, y)], axis=2)


def find_features(scores: np.ndarray, matrix: np.ndarray, rest: slice) -> np.ndarray:
  """(T, S + 3): the scores' differences from their medians at rest, and the head's turn from there, axis times angle."""
  middle = lambda x: np.sort(x[rest], axis=0)[len(x[rest]) // 2]
  still = rotations(middle(matrix)[None])[0]
  turned = np.einsum("ji,tjk->tik", still, rotations(matrix))
  return np.concatenate([scores - middle(scores), Rotation.from_matrix(turned).as_rotvec()], axis=1)


def load_settings(work: pathlib.Path) -> tuple[list[Setting], list[str]]:
  settings, names = [], []
  for path in sorted((work / "outputs").glob("*.npz")):
    with np.load(path) as file:
      scores, matrix, names = file["scores"].astype(np.float64), file["matrix"].astype(np.float64), file["names"].tolist()
    with np.load(work / "pictures" / path.name) as file:
      motion, rest, kind, group = file["motion"].astype(np.float64), int(file["rest"]), str(file["kind"]), str(file["group"])
    seen = np.isfinite(scores).all(1)
    still = np.flatnonzero(seen[:rest])[5 * ("film" not in kind) :]  # The first pictures of a new face are a filter's.
    if len(still) < 5:
      print(f"{path}: left out: no face at rest")
      continue
    features = find_features(scores[seen], matrix[seen], np.searchsorted(np.flatnonzero(seen), still))
    moving = np.flatnonzero(seen) >= rest
    head = MOTION_GROUPS["pose"]
    motion = motion[seen]
    own = Rotation.from_rotvec(motion[: (~moving).sum(), head]).mean() if (~moving).any() else Rotation.identity()
    motion[:, head] = (own.inv() * Rotation.from_rotvec(motion[:, head])).as_rotvec()
    settings.append(Setting(path.stem, kind, group, features[moving], motion[moving]))
  return settings, names


def solve(settings: list[Setting], ridge: float) -> tuple[np.ndarray, np.ndarray]:
  """Weights (56, F) and bias (56,), every setting counting as much as each other of its kind, however long."""
  x = np.concatenate([s.features for s in settings])
  y = np.concatenate([s.motion for s in settings])
  share = np.concatenate([np.full(len(s.motion), (RANDOM_SHARE if s.kind == "random" else 1) / len(s.motion)) for s in settings])
  share = share[:, None] / share.sum()
  mean_x, mean_y = (share * x).sum(0), (share * y).sum(0)
  covariance = (share * (x - mean_x)).T @ (x - mean_x)
  weights = np.linalg.solve(covariance + ridge * np.eye(x.shape[1]), (share * (x - mean_x)).T @ (y - mean_y)).T
  bias = mean_y - weights @ mean_x
  # The head turns as the tracker's does, and by nothing else; its rest is rest.
  head, turn = MOTION_GROUPS["pose"], slice(x.shape[1] - 3, None)
  weights[head], bias[head] = 0, 0
  weights[head, turn] = np.linalg.solve((share * x[:, turn]).T @ x[:, turn], (share * x[:, turn]).T @ y[:, head]).T
  unseen = slice(MOTION_GROUPS["jaw"].start + 1, MOTION_GROUPS["jaw"].stop)
  weights[unseen], bias[unseen] = 0, 0
  return weights, bias


def apply(weights: np.ndarray, bias: np.ndarray, features: np.ndarray) -> np.ndarray:
  return np.clip(features @ weights.T + bias, LEAST, MOST)


def score(pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
  """Of found and true motions: correlation within the settings (each about its own mean), rms of the error, rms of the truth."""
  about = lambda x: x - x.mean(0)
  found, true = (np.concatenate([about(pair[i]) for pair in pairs]) for i in (0, 1))
  wrong = np.concatenate([pair[0] - pair[1] for pair in pairs])
  with np.errstate(invalid="ignore", divide="ignore"):
    r = (found * true).sum(0) / np.sqrt((found**2).sum(0) * (true**2).sum(0))
  moved = true.std(0) > 0.01  # Nothing is to be found in what hardly moves.
  r = np.where(moved, np.nan_to_num(r), np.nan)
  return {"r": r, "rms": np.sqrt((wrong**2).mean(0)), "true": true.std(0)}


def error_table(tables: dict[str, dict[str, np.ndarray]]) -> str:
  """Markdown: correlation, and rms of the error of rms of the truth, both sides in one line."""
  sides: dict[str, list[int]] = {}
  for i, name in enumerate(NAMES):
    twin = name.removesuffix("Left") + "Right" if name.endswith("Left") else name.removesuffix("Right") + "Left"
    paired = name.endswith(("Left", "Right")) and twin in NAMES and name not in ("jawLeft", "jawRight", "mouthLeft", "mouthRight")
    sides.setdefault(name.removesuffix("Left").removesuffix("Right") if paired else name, []).append(i)
  rows = {}
  for name, columns in sides.items():
    mean = lambda x: float(np.mean(x[columns]))
    cells = [f"{mean(t['r']):.2f}; {mean(t['rms']):.3f} of {mean(t['true']):.3f}" if np.isfinite(mean(t["r"])) else "–" for t in tables.values()]
    if set(cells) != {"–"}:
      rows[name] = cells
  return markdown_table(list(tables), rows)


def fit(args: argparse.Namespace) -> None:
  settings, names = load_settings(pathlib.Path(args.work))
  rendered = [s for s in settings if "film" not in s.kind]
  films = [s for s in settings if "film" in s.kind]
  if not rendered:
    sys.exit(f"error: {args.work}: found no outputs of rendered faces, expected those of `render` and `track`")
  learnt = rendered + [s for s in films if args.films and s.kind == "film"]
  groups = sorted({s.group for s in rendered})
  errors = {}
  for ridge in RIDGES:  # Each identity by a map that has not seen it.
    found = []
    for group in groups:
      weights, bias = solve([s for s in learnt if s.group != group], ridge)
      found += [(apply(weights, bias, s.features), s.motion) for s in rendered if s.group == group and s.kind == "simulated"]
    scores = score(found)
    moving = scores["true"][:51] > 0.01
    errors[ridge] = float(np.mean((scores["rms"][:51] / scores["true"][:51])[moving] ** 2))
    print(f"ridge {ridge:g}: unexplained {errors[ridge]:.3f}")
    if errors[ridge] == min(errors.values()):
      unseen = scores
  ridge = min(errors, key=errors.get)
  weights, bias = solve(learnt, ridge)
  tested = [s for s in films if s not in learnt]
  tables = {"renders of another identity": unseen}
  if tested:
    tables["films"] = score([(apply(weights, bias, s.features), s.motion) for s in tested])
  print(f"ridge {ridge:g}; {len(learnt)} settings, {sum(len(s.motion) for s in learnt)} pictures, {len(groups)} identities\n")
  print(error_table(tables))
  rounded = lambda x: [[float(f"{v:.4g}") for v in row] for row in x] if np.ndim(x) == 2 else [float(f"{v:.4g}") for v in x]
  record = {
      "basis": "arkit", "names": names, "weights": rounded(weights), "bias": rounded(bias), "least": LEAST.tolist(), "most": MOST.tolist(),
      "made": {
          "command": "tools/fit_webcam.py", "tracker": "tasks-vision 0.10.21, face_landmarker float16/1", "ridge": ridge,
          "settings": len(learnt), "identities": len(groups), "pictures": int(sum(len(s.motion) for s in learnt)),
          "error": {kind: {name: {"r": round(float(t["r"][i]), 3) if np.isfinite(t["r"][i]) else None, "rms": round(float(t["rms"][i]), 4)}
                           for i, name in enumerate(NAMES)} for kind, t in tables.items()},
      },
  }  # fmt: skip
  if args.out:
    lines = json.dumps(record, indent=1)
    text = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: "[" + re.sub(r"\s*\n\s*", " ", m[1]) + "]", lines)
    with whole_file(args.out) as file:
      file.write(text.encode() + b"\n")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  verbs = parser.add_subparsers(required=True)
  for name, run in (("render", render), ("track", track), ("fit", fit)):
    verb = verbs.add_parser(name)
    verb.set_defaults(run=run)
    verb.add_argument("--work", required=True)
    if name == "render":
      verb.add_argument("--workdir", required=True, help="a run with avatars")
      verb.add_argument("--settings", type=int, default=SETTINGS)
      verb.add_argument("--chunk", type=int, default=8, help="frames at once")
    elif name == "track":
      verb.add_argument("--tracker", help="its folder, as the live page's --tracker")
    else:
      verb.add_argument("--out", help="where to write the map")
      verb.add_argument("--films", action="store_true", help="the training films are part of the fit")
  args = parser.parse_args()
  args.run(args)


if __name__ == "__main__":
  main()
