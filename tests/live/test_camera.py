"""What the server tells of the camera, and how A's motion comes and goes with it."""

import asyncio
import json

import numpy as np
import pytest

from live import probe
from live.talks import TOKEN, serve, talk
from rsatalker_jax.live import camera
from rsatalker_jax.live.camera import Camera, load_map, prepare_camera
from rsatalker_jax.live.seen import SeenMotion
from rsatalker_jax.live.tracker import FILES
from rsatalker_jax.types import ARKIT_EXPRESSIONS, MOTION_DIM
from served import request

SEEN = np.full(56, 1.25, np.float32)
HARMLESS = np.where(np.arange(56) == 0, 1.25, 0.25).astype(np.float32)  # To the probe.


def test_seen_motion_comes_and_goes_smoothly():
  face, supposed = SeenMotion(), np.full(56, 0.25, np.float32)
  mixed = [face.mix(motion, supposed) for motion in [None] * 3 + [SEEN] * 8 + [None] * 16]
  assert all(motion.dtype == np.float32 and np.ptp(motion) == 0 for motion in mixed)
  share = np.array([motion[0] for motion in mixed]) - 0.25
  assert not share[:3].any() and not share[-5:].any()
  np.testing.assert_array_equal(share[7:11], 1)  # A fifth of a second after the first.
  assert (np.diff(share[2:8]) > 0).all() and (np.diff(share[10:23]) < 0).all()
  assert np.abs(np.diff(share)).max() < 0.31 and np.abs(np.diff(share[10:])).max() < 0.13
  # What is seen is given as it is, and what is supposed, too.
  assert face.mix(None, supposed) is supposed
  again = [face.mix(k * SEEN, supposed)[0] for k in range(1, 8)]
  np.testing.assert_array_equal(again[4:], [k * 1.25 for k in (5, 6, 7)])


def test_each_conversation_sees_its_own_face_and_begins_unseen():
  async def main(port):
    async with talk(port) as a, talk(port) as b:
      found = [((await a.ask(motion=HARMLESS))[2][probe.SEEN], (await b.ask())[2][probe.SEEN]) for _ in range(8)]
      assert [x for _, x in found] == [0.25] * 8 and found[-1][0] == 1.25 and 0.25 < found[0][0] < 0.5
      found = [(await a.ask())[2][probe.SEEN] for _ in range(14)]
      assert 1 < found[0] < 1.25 and found[-1] == 0.25
      await a.ask(motion=HARMLESS)
    async with talk(port) as a:
      assert (await a.ask())[2][probe.SEEN] == 0.25

  with serve() as port:
    asyncio.run(main(port))


# --- What is served

FACE_MAP = {"names": ["x"], "weights": [[0.0] * 4] * 56, "bias": [0.0] * 56, "least": [0.0] * 56, "most": [0.0] * 56}


def test_the_trackers_thread_alone_may_run_webassembly():
  files = {name: name.encode() for name in FILES}
  with serve(camera=Camera({"map": FACE_MAP}, files)) as port:
    assert json.loads(request(port, "GET", f"/{TOKEN}/state")[2])["camera"] == {"map": FACE_MAP}
    types = {".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm", ".task": "application/octet-stream"}
    for name in files:
      status, headers, body = request(port, "GET", f"/tracker/{name}")
      assert (status, body) == (200, files[name]) and headers["Content-Type"].split(";")[0] == types[name[name.rindex("."):]]
      assert "unsafe" not in headers["Content-Security-Policy"]
    status, headers, body = request(port, "GET", "/tracker/tracker_worker.js")
    assert status == 200 and b"FaceLandmarker" in body
    policy = headers["Content-Security-Policy"]
    assert "script-src 'self' 'wasm-unsafe-eval';" in policy and policy.startswith("default-src 'none'") and policy.count("unsafe") == 1
    assert "connect-src 'self';" in policy and headers["X-Content-Type-Options"] == "nosniff"
    for path in (f"/{TOKEN}/", "/assets/webcam.js", "/assets/live.js"):
      assert "unsafe" not in request(port, "GET", path)[1]["Content-Security-Policy"]
    for path in ("/tracker/", "/tracker/nothing.js", "/tracker/../server.py", "/assets/tracker_worker.js"):
      assert request(port, "GET", path)[0] == 404
  with serve() as port:
    assert json.loads(request(port, "GET", f"/{TOKEN}/state")[2])["camera"] == {"trouble": "this program has no tracker"}
    assert request(port, "GET", "/tracker/tracker_worker.js")[0] == 404


def test_why_there_is_no_camera(tmp_path, monkeypatch):
  monkeypatch.setattr(camera, "load_tracker", lambda folder: {"a.js": b"a"})
  found = prepare_camera(tmp_path, "arkit")
  assert found.files == {"a.js": b"a"} and set(found.about) == {"map"} and set(found.about["map"]) == set(FACE_MAP)
  for basis, part in (("flame2023", "this run is in the basis flame2023"), (None, "a basis that its head does not tell")):
    found = prepare_camera(tmp_path, basis)
    assert not found.files and set(found.about) == {"trouble"} and part in found.about["trouble"]
  found = prepare_camera(tmp_path / "nowhere", "arkit")
  assert not found.files and found.about == {"trouble": "that needs `python -m rsatalker_jax tracker`, once"}
  monkeypatch.undo()
  (tmp_path / "vision_bundle.mjs").write_text("something else")
  found = prepare_camera(tmp_path, "arkit")
  assert not found.files and "vision_bundle.mjs: found 14 bytes with SHA-256" in found.about["trouble"]


# --- The map that is shipped


def test_the_map_is_whole():
  face_map = load_map()
  assert face_map["basis"] == "arkit"
  weights, bias, least, most = (np.array(face_map[name]) for name in ("weights", "bias", "least", "most"))
  assert weights.shape == (MOTION_DIM, len(face_map["names"]) + 3)
  assert bias.shape == least.shape == most.shape == (MOTION_DIM,)
  assert all(np.isfinite(x).all() for x in (weights, bias, least, most)) and (least <= most).all()
  assert (least <= 0).all() and (most[:50] == 1).all()
  # A face at rest is one; the head turns by what the tracker's turns.
  assert np.abs(bias).max() < 0.1 and not weights[53:, :-3].any() and not bias[53:].any()
  assert (np.diag(weights[53:, -3:]) > 0.7).all()


@pytest.mark.parametrize("shape", ["eyeBlink", "mouthSmile", "browOuterUp", "mouthFunnel"])
def test_what_is_seen_well_goes_by_its_own_name(shape):
  face_map = load_map()
  weights = np.array(face_map["weights"])
  row = lambda name: weights[ARKIT_EXPRESSIONS.index(name), face_map["names"].index(name)]
  assert all(row(name) > 0.2 for name in ARKIT_EXPRESSIONS if name.startswith(shape))
  assert weights[50, face_map["names"].index("jawOpen")] > 0.1
