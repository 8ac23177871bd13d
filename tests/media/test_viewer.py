"""The page that plays an avatar: what it holds, and what a browser shows of it against the rasterizer's pictures."""

import base64
import dataclasses
import gzip
import io
import json
import pathlib
import re
import shutil
import subprocess

import jax
import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from rsatalker_jax.avatar import render_frames
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import head_vertices, pose_for
from rsatalker_jax.media import viewer
from tiny_world import make_motion

SIZE, FRAMES = 96, 6
BACKGROUND = (0.2, 0.5, 0.9)
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
# SwiftShader draws in software; there is no network; time runs on as soon as nothing is to be done.
OPTIONS = (
    "--headless=new --no-sandbox --use-angle=swiftshader --enable-unsafe-swiftshader --no-first-run "
    "--disable-background-networking --virtual-time-budget=5000 --enable-logging=stderr --dump-dom"
).split() + ["--host-resolver-rules=MAP * ~NOTFOUND"]

# Appended to the page: uses its controls, draws some moments from some sides, and writes down what it saw.
WATCH = """<script>
ready.then(async (player) => {
  await new Promise((done) => setTimeout(done, 300));  // 25 fps: half a second is all there is.
  const played = player.frame, slider = document.getElementById("time");
  slider.value = 2;
  slider.oninput();
  const seen = { played, moved: player.frame, playing: player.playing, pictures: [] };
  for (const { frame, ...view } of SHOTS) {
    player.frame = frame;
    Object.assign(player.view, view);
    player.draw(SIZE, SIZE);
    seen.pictures.push(player.screen.canvas.toDataURL("image/png"));
  }
  seen.error = player.screen.gl.getError();
  const result = document.createElement("pre");
  result.id = "seen";
  result.textContent = JSON.stringify(seen);
  document.body.append(result);
});
</script></body>"""


def with_entry(values: np.ndarray, index, value: float) -> np.ndarray:
  changed = np.array(values)
  changed[index] = value
  return changed


@pytest.fixture(scope="module")
def person(avatar):
  """The shared avatar with colours of degree 3, and one Gaussian that is too faint to be drawn."""
  avatar = jax.device_get(avatar)
  third = 0.3 * np.random.default_rng(4).normal(size=(len(avatar.binding), 7, 3)).astype(np.float32)
  sh = np.concatenate([avatar.gaussians.sh, third], axis=1)
  logits = with_entry(avatar.gaussians.opacity_logits, 3, -20)
  return avatar.replace(gaussians=avatar.gaussians.replace(sh=sh, opacity_logits=logits))


@pytest.fixture(scope="module")
def flame():
  return jax.tree.map(np.asarray, pose_for(make_motion(3)[:FRAMES]))


@pytest.fixture(scope="module")
def offsets(head):
  return 0.004 * np.random.default_rng(5).normal(size=(FRAMES, len(head.faces), 3)).astype(np.float32)


@pytest.fixture(scope="module")
def page(tmp_path_factory, person, head, flame, offsets):
  path = tmp_path_factory.mktemp("page") / "deep" / "A & B.html"
  viewer.write_player(path, person, head, flame, offsets, background=BACKGROUND)
  return path


def unpack(text: str) -> tuple[dict, dict[str, np.ndarray]]:
  """The page's header and tables."""
  inside = lambda name: re.search(rf'<script id="{name}"[^>]*>([^<]*)</script>', text)[1]
  header, data = json.loads(inside("header")), gzip.decompress(base64.b64decode(inside("data")))
  tables, start = {}, 0
  for table in header["tables"]:
    shape = table["shape"]
    size = int(np.prod(shape))
    if table["type"] == "uint32":
      tables[table["name"]] = np.frombuffer(data, "<u4", size, start).reshape(shape)
      start += 4 * size
      continue
    low, high = np.frombuffer(data, np.uint8, 2 * size, start).reshape(2, *shape).astype(np.int64)
    steps = np.cumsum(low + 256 * high, axis=0) % 65536
    tables[table["name"]] = np.array(table["least"]) + np.array(table["step"]) * steps
    start += 2 * size
  assert start == len(data)
  return header, tables


def test_page_holds_the_avatar_and_no_address(page, person, head, flame, offsets):
  text = page.read_text()
  assert [path.name for path in page.parent.iterdir()] == ["A & B.html"]
  assert "<title>A &amp; B</title>" in text and "@@" not in text
  assert "default-src 'none'" in text and not re.search(r"https?:|//\w+\.\w+|@import|fetch\(|XMLHttp", text)
  header, tables = unpack(text)
  assert header["fps"] == 25 and header["background"] == list(BACKGROUND)
  seen = np.arange(len(person.binding)) != 3
  pose = lambda flame: head_vertices(head, shape=person.shape, static_offset=person.static_offset, **flame)
  gaussians = person.gaussians
  expected = {
      "faces": head.faces,
      "binding": person.binding[seen],
      "vertices": jax.jit(jax.vmap(pose))(flame),
      "offsets": offsets,
      "means": gaussians.means[None, seen],
      "quats": (gaussians.quats / np.linalg.norm(gaussians.quats, axis=1, keepdims=True))[None, seen],
      "log_scales": gaussians.log_scales[None, seen],
      "opacities": jax.nn.sigmoid(gaussians.opacity_logits)[None, seen, None],
      "sh": gaussians.sh[None, seen].reshape(1, seen.sum(), 48),
  }
  assert list(tables) == list(expected)
  for name, values in expected.items():
    # Half a step of 16 bits over the table's range, or of a micrometre, and float32's rounding of numbers below 2.
    tolerance = 0 if values.ndim < 3 else max(np.ptp(values, axis=(0, 1)).max() / 65535, 1e-6) / 2 + 2e-7
    np.testing.assert_allclose(tables[name], values, rtol=0, atol=tolerance, err_msg=name)


def watch(page: pathlib.Path, shots: list[dict]) -> dict:
  """Opens the page in the browser; what `WATCH` saw, with pictures (H, W, 3) in [0, 1]."""
  script = WATCH.replace("SHOTS", json.dumps(shots)).replace("SIZE", str(SIZE))
  watched = page.with_name("watched.html")
  watched.write_text(page.read_text().replace("</body>", script))
  command = [BROWSER, *OPTIONS, f"--user-data-dir={page.parent / 'profile'}", watched.as_uri()]
  run = subprocess.run(command, capture_output=True, text=True, timeout=60)
  # Beside the console's messages, drivers tell there how fast a call was.
  said = [line for line in run.stderr.splitlines() if "CONSOLE" in line and "GL Driver Message" not in line]
  found = re.search(r'<pre id="seen">(.*?)</pre>', run.stdout)
  assert found and not said, said or run.stderr[-2000:] + run.stdout[-500:]
  seen = json.loads(found[1])
  decode = lambda url: np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB"))
  seen["pictures"] = [decode(url) / 255 for url in seen["pictures"]]
  return seen


@pytest.mark.skipif(BROWSER is None, reason=f"no browser: none of {', '.join(BROWSERS)} is installed")
def test_browser_plays_and_draws_as_the_rasterizer_does(page, person, head, flame, offsets):
  front = viewer.front_camera(head, SIZE)
  target = np.array([0, 0.1 - 0.13, 0])  # The ball's top, and the face below it.
  shots, cameras = [], []
  for frame, yaw, pitch, distance in ((0, 0, 0, 0.8), (5, 0, 0, 0.8), (2, 0.7, 0.4, 0.5), (2, -2.5, -1.2, 0.3)):
    shots.append(dict(frame=frame, yaw=yaw, pitch=pitch, distance=distance))
    turned = Rotation.from_euler("YX", [yaw, -pitch]).as_matrix()
    to_world = turned @ np.diag([1, -1, -1])  # OpenCV's axes.
    eye = target + distance * turned[:, 2]
    cameras.append(np.block([[to_world.T, -to_world.T @ eye[:, None]], [np.zeros((1, 3)), np.ones((1, 1))]]))
  np.testing.assert_allclose(cameras[0], front.world_to_camera, atol=1e-6)
  frames = [shot["frame"] for shot in shots]
  draw = lambda person, flame, offsets, camera: render_frames(
      person, head, flame, offsets, camera, background=np.array(BACKGROUND, np.float32), implementation="reference"
  )
  around = dataclasses.replace(front, world_to_camera=np.stack(cameras).astype(np.float32))
  poses = {name: x[frames] for name, x in flame.items()}
  truths = np.clip(jax.jit(draw)(person, poses, offsets[frames], around).image, 0, 1)

  seen = watch(page, shots)
  assert seen["error"] == 0
  assert seen["played"] > 0 and seen["moved"] == 2 and not seen["playing"]
  assert np.abs(seen["pictures"][0] - seen["pictures"][1]).max() > 0.1
  for picture, truth in zip(seen["pictures"], truths, strict=True):
    psnr = -10 * np.log10(np.mean((picture - truth) ** 2))
    # Rounding to bytes alone leaves 58.9 dB. Half floats (11 bits) for each of some ten layers make it a little less.
    assert psnr > 55, (psnr, np.abs(picture - truth).max())


def test_what_cannot_be_drawn_is_refused(tmp_path, person, head, flame):
  broken = lambda **changes: person.replace(gaussians=person.gaussians.replace(**changes))
  gaussians = person.gaussians
  not_finite = "found a value that is not finite"
  for changes, message in (
      (dict(means=with_entry(gaussians.means, (1, 2), np.inf)), f"means: {not_finite}"),
      (dict(opacity_logits=with_entry(gaussians.opacity_logits, 1, np.nan)), f"opacities: {not_finite}"),
      (dict(quats=with_entry(gaussians.quats, 1, 0)), "quats: found a quaternion of zeros"),
      (dict(opacity_logits=gaussians.opacity_logits - 30), "opacities: found all below 1/255"),
  ):
    with pytest.raises(InputError, match=f"a.html: {message}"):
      viewer.write_player(tmp_path / "a.html", broken(**changes), head, flame)
  with pytest.raises(InputError, match=f"a.html: vertices: {not_finite}"):
    viewer.write_player(tmp_path / "a.html", person, head, flame | {"jaw": flame["jaw"] * np.nan})
  assert list(tmp_path.iterdir()) == []
