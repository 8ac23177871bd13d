"""The page that plays an avatar: what it holds, and what a browser shows of it against the rasterizer's pictures."""

import base64
import dataclasses
import gzip
import io
import json
import re

import jax
import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from media.browser import BROWSER, OpenPage
from rsatalker_jax.avatar import render_frames
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import head_vertices, pose_for
from rsatalker_jax.media import viewer
from tiny_world import make_motion

SIZE, FRAMES = 96, 6
BACKGROUND = (0.2, 0.5, 0.9)


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


@pytest.fixture
def opened(page, tmp_path):
  if BROWSER is None:
    pytest.skip("needs Chromium: apt-get install chromium-headless-shell")
  with OpenPage(page, tmp_path / "profile") as opened:
    opened.evaluate("ready.then(() => null)")
    yield opened
  assert not opened.errors


def test_player_keeps_time(opened):
  state = lambda: opened.evaluate(
      "ready.then((p) => [p.posed, Number(byId('time').value), byId('clock').textContent, byId('play').textContent])"
  )
  opened.evaluate("pass(0)")
  assert state() == [0, 0, "0.00 / 0.24 s", "Pause"]
  opened.evaluate("pass(90)")  # 25 fps: a frame is 40 ms.
  assert state() == [2, 2, "0.08 / 0.24 s", "Pause"]
  opened.evaluate("pass(200)")
  assert state() == [1, 1, "0.04 / 0.24 s", "Pause"]  # Around the end.
  opened.evaluate("byId('play').click(), pass(100)")
  assert state() == [1, 1, "0.04 / 0.24 s", "Play"]
  opened.evaluate("byId('play').click(), pass(50)")
  assert state() == [2, 2, "0.08 / 0.24 s", "Pause"]  # From where it stood.
  opened.evaluate("byId('time').value = 4, byId('time').dispatchEvent(new Event('input')), pass(100)")
  assert state() == [4, 4, "0.16 / 0.24 s", "Play"]


def test_mouse_turns_and_nears_the_view(opened):
  view = lambda: opened.evaluate("ready.then((p) => p.view)")
  button = dict(button="left", clickCount=1)
  opened.mouse("mousePressed", 300, 200, **button)
  for x, y in ((310, 205), (350, 240)):
    opened.mouse("mouseMoved", x, y, buttons=1, button="left")
  opened.mouse("mouseReleased", 350, 240, **button)
  opened.mouse("mouseMoved", 500, 100)  # Without a button nothing is dragged.
  assert view() == pytest.approx({"yaw": -0.008 * 50, "pitch": 0.008 * 40, "distance": 0.8})
  opened.mouse("mouseWheel", 300, 200, deltaX=0, deltaY=100)
  assert view()["distance"] == pytest.approx(0.8 * np.exp(0.1))
  opened.evaluate("byId('view').dispatchEvent(new MouseEvent('dblclick'))")
  assert view() == {"yaw": 0, "pitch": 0, "distance": 0.8}


def test_browser_draws_as_the_rasterizer_does(opened, person, head, flame, offsets):
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

  decode = lambda url: np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB")) / 255
  pictures = [
      decode(opened.evaluate(f"""ready.then((player) => {{
        const {{ frame, ...view }} = {json.dumps(shot)};
        player.frame = frame;
        Object.assign(player.view, view);
        player.draw({SIZE}, {SIZE});
        return player.screen.canvas.toDataURL("image/png");
      }})"""))
      for shot in shots
  ]
  assert opened.evaluate("ready.then((player) => player.screen.gl.getError())") == 0
  assert np.abs(pictures[0] - pictures[1]).max() > 0.1
  for picture, truth in zip(pictures, truths, strict=True):
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
