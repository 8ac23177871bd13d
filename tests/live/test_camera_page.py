"""The page's camera in a browser whose camera plays a film: by a tracker that tells a picture's colours, and by the real one.

The real one needs `python -m rsatalker_jax tracker`.
"""

import contextlib
import io
import pathlib
import socket
import time

import jax
import numpy as np
import pytest
import scipy.io.wavfile
from PIL import Image
from scipy.spatial.transform import Rotation

from live import probe
from media.browser import BROWSER, OpenPage
from rsatalker_jax.avatar import init_avatar
from rsatalker_jax.commands.tracker import tracker_folder
from rsatalker_jax.data.video_frames import read_video_frame
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import load_head
from rsatalker_jax.live.camera import Camera, load_map, prepare_camera
from rsatalker_jax.live.engine import describe_avatar
from rsatalker_jax.live.server import LiveServer
from rsatalker_jax.live.tracker import FILES
from rsatalker_jax.live.worker import Worker
from rsatalker_jax.types import ARKIT_EXPRESSIONS, EXPRESSION_DIM, MOTION_GROUPS
from served import serving_in_thread
from tiny_world import write_head

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium: apt-get install chromium-headless-shell")

ASSETS = pathlib.Path(__file__).parents[2] / "assets"
RATE = 30  # Pictures a second that Chromium plays of a film.

# A tracker for which red is a face, green how far its mouth is open, and blue how far it has turned; black ends it.
STUB = """
export const FaceLandmarker = {
  async createFromOptions(wasm, { baseOptions, runningMode, outputFaceBlendshapes, outputFacialTransformationMatrixes }) {
    for (const path of [wasm.wasmLoaderPath, wasm.wasmBinaryPath, baseOptions.modelAssetPath]) {
      if (!(await fetch(path)).ok) throw new Error(`no ${path}`);
    }
    if (location.hash) await fetch(location.hash.slice(1));  // A tracker that would tell somebody.
    if (runningMode !== "VIDEO" || !outputFaceBlendshapes || !outputFacialTransformationMatrixes) throw new Error("options");
    await WebAssembly.compile(Uint8Array.of(0, 97, 115, 109, 1, 0, 0, 0));  // Which the policy has to allow.
    const context = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    let last = -1;
    return {
      detectForVideo(picture, time) {
        if (!(time > last)) throw new Error(`time does not rise: ${last}, ${time}`);
        last = time;
        if (picture instanceof ImageData) return { faceBlendshapes: [], facialTransformationMatrixes: [] };
        context.drawImage(picture, 0, 0, 1, 1);
        const [red, green, blue] = context.getImageData(0, 0, 1, 1).data;
        if (red + green + blue < 40) throw new Error("this is dark");
        if (red < 100) return { faceBlendshapes: [], facialTransformationMatrixes: [] };
        const c = Math.cos(blue / 255), s = Math.sin(blue / 255), size = 2.5;
        return {
          faceBlendshapes: [{ categories: [["_neutral", 0], ["jawOpen", green / 255]].map(([categoryName, score]) => ({ categoryName, score })) }],
          facialTransformationMatrixes: [{ data: [c, 0, -s, 0, 0, 1, 0, 0, s, 0, c, 0, 3, 4, 5, 1].map((x, i) => (i < 12 ? size * x : x)) }],
        };
      },
    };
  },
};
"""
WEIGHTS = np.zeros((56, 5))
WEIGHTS[0, 1], WEIGHTS[54, 3] = 2.0, 1.0  # Twice how far the mouth is open; the turn about y.
STUB_MAP = {
    "names": ["_neutral", "jawOpen"], "weights": WEIGHTS.tolist(), "bias": [0.0] * 56, "least": [-1.0] * 56, "most": [1.0] * 56,
}  # fmt: skip
PAUSES = "The camera gives no pictures.", "The camera's pictures are looked at too slowly here."
REST, TURNED, WIDE, NOBODY = (200, 50, 100), (200, 100, 180), (200, 250, 100), (20, 100, 100)


def write_film(path, pictures):
  """As Chromium's camera plays it, again and again."""
  buffer = io.BytesIO()
  for picture in pictures:
    Image.fromarray(picture).save(buffer, "JPEG", quality=95)
  path.write_bytes(buffer.getvalue())


@contextlib.contextmanager
def open_page(folder, camera, film):
  scipy.io.wavfile.write(folder / "a.wav", 48000, np.zeros(48000, np.int16))
  write_head(folder / "head.npz")
  head = load_head(folder / "head.npz")
  avatar = jax.device_get(init_avatar(head, np.zeros(2, np.float32), num_gaussians=len(head.faces), sh_degree=0))
  worker = Worker(probe.ProbeEngine, 0, 1, *describe_avatar(avatar, head, (0.5, 0.6, 0.7), "probe"), own_process=False)
  flags = (
      "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", f"--use-file-for-fake-audio-capture={folder / 'a.wav'}",
      f"--use-file-for-fake-video-capture={film}", "--autoplay-policy=no-user-gesture-required",
  )  # fmt: skip
  with contextlib.ExitStack() as stack:
    stack.callback(worker.stop)
    make_app = lambda origins: LiveServer(worker, "token", origins, camera=camera).make_app()
    port = stack.enter_context(serving_in_thread(make_app))
    page = stack.enter_context(OpenPage(f"http://127.0.0.1:{port}/token/", folder / "profile", holds_clock=False, options=flags))
    page.resize(320, 240)
    page.evaluate("ready.then(() => null)")
    page.origin = f"http://127.0.0.1:{port}"
    yield page
    page.open("about:blank")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
  folder = tmp_path_factory.mktemp("camera")
  write_film(folder / "a.mjpeg", [np.full((120, 160, 3), REST, np.uint8)] * 4)
  files = dict.fromkeys(FILES, b"-") | {"vision_bundle.mjs": STUB.encode()}
  with open_page(folder, Camera({"map": STUB_MAP}, files), folder / "a.mjpeg") as page:
    # A camera that sees what the test wants it to.
    page.evaluate("""navigator.mediaDevices.real = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
      const canvas = Object.assign(document.createElement("canvas"), { width: 160, height: 120 }), paint = canvas.getContext("2d");
      window.colour = [0, 0, 0];
      setInterval(() => { paint.fillStyle = `rgb(${colour})`, paint.fillRect(0, 0, 160, 120); }, 30);
      navigator.mediaDevices.painted = async (wanted) => (wanted.video ? canvas.captureStream() : navigator.mediaDevices.real(wanted));
      0""")
    yield page


def use_camera(page, name):
  page.evaluate(f"navigator.mediaDevices.getUserMedia = navigator.mediaDevices.{name}, 0")


def show(page, colour):
  page.evaluate(f"window.colour = {list(colour)}, 0")


def until(page, expression, seconds=120):
  ends = time.monotonic() + seconds
  while not page.evaluate(expression):
    assert time.monotonic() < ends, (expression, seen(page), page.evaluate("byId('trouble').innerText"), page.errors)
    time.sleep(0.02)


def seen(page):
  return page.evaluate("byId('seen').innerText")


def test_a_is_seen(page):
  assert seen(page) == "Your face is not seen." and page.evaluate("byId('preview').hidden")
  page.evaluate("""window.lines = [], window.motions = []; {
    const tell = talk.webcam.tell, add = talk.clock.add.bind(talk.clock);
    talk.webcam.tell = (...line) => { if (lines.at(-1) !== line[0]) lines.push(line[0]); tell(...line); };
    talk.clock.add = (number, motion) => { motions.push(motion[3]); add(number, motion); };
  }""")
  use_camera(page, "painted")
  show(page, REST)
  page.key("s")
  until(page, "talk.ready")
  page.key("c")
  until(page, "talk.webcam.calibrated")
  assert not page.evaluate("byId('preview').hidden") and page.evaluate("byId('camera').checked")
  motion = lambda: np.array(page.evaluate("[...talk.webcam.seen.motion]"))
  assert np.abs(motion()).max() < 0.01
  # What differs from rest, and as far as the map goes.
  for colour, mouth, yaw in ((TURNED, 2 * 50 / 255, 80 / 255), (WIDE, 1, 0)):
    show(page, colour)
    until(page, f"Math.hypot(talk.webcam.seen.motion[0] - {mouth}, talk.webcam.seen.motion[54] - {yaw}) < 0.03")
    assert not any(motion()[i] for i in range(56) if i not in (0, 54))
  until(page, "motions.at(-1) === 1")
  show(page, NOBODY)
  until(page, "byId('seen').innerText === 'No face is seen.'")
  # The generator has seen it: from what is supposed of A to it, and back, without a jump.
  until(page, "motions.at(-1) === 0.25")
  motions = np.array(page.evaluate("motions"))
  assert motions[0] == 0.25 and motions.max() == 1
  assert np.diff(motions).min() > -0.1
  show(page, WIDE)  # Somebody comes back, and is not measured anew.
  until(page, "byId('seen').innerText === 'Your face is seen.' && motions.at(-1) === 1")
  # On a busy machine the tracker may pause in between.
  lines = [line for line in page.evaluate("lines") if line not in ("", *PAUSES)]
  assert [line for i, line in enumerate(lines) if line != (["", *lines])[i]] == [
      "Asking for the camera …", "Loading the tracker …", "Look at the camera, your face at rest, for two seconds.", "Your face is seen.",
      "No face is seen.", "Your face is seen.",
  ]  # fmt: skip
  assert not page.errors


def test_it_ends_and_begins_by_key(page):
  use_camera(page, "real")
  if page.evaluate("talk.webcam.open"):
    page.key("c")
    until(page, "!talk.webcam.open")
  page.key("c")
  until(page, "talk.webcam.seen")
  assert page.evaluate("byId('cameras').options.length") == 2  # The usual one, and the browser's.
  page.evaluate("window.track = talk.webcam.stream.getTracks()[0], 0")
  page.key("c")
  until(page, "!talk.webcam.open")
  assert seen(page) == "Your face is not seen." and page.evaluate("byId('preview').hidden && track.readyState === 'ended'")
  assert page.evaluate("talk.webcam.motion(performance.now()) === null")


def test_what_goes_wrong_is_said_and_the_conversation_goes_on(page):
  if not page.evaluate("talk.ready"):
    page.key("s")
    until(page, "talk.ready")
  if page.evaluate("talk.webcam.open"):
    page.key("c")
  for name, part in (("NotAllowedError", "may not use the camera"), ("NotFoundError", "no camera"), ("NotReadableError", "something else")):
    page.evaluate(f"""navigator.mediaDevices.getUserMedia = async (wanted) => {{
      if (wanted.video) throw new DOMException("", "{name}");
      return navigator.mediaDevices.real(wanted);
    }}, 0""")
    page.key("c")
    until(page, f"byId('seen').innerText.includes('{part}')")
    assert not page.evaluate("byId('camera').checked || talk.webcam.open") and page.evaluate("talk.ready && byId('preview').hidden")
  use_camera(page, "painted")
  show(page, REST)
  start = lambda: (page.key("c"), until(page, "talk.webcam.worker && talk.webcam.open"))
  start()  # It is pulled out.
  page.evaluate("talk.webcam.stream.getTracks()[0].dispatchEvent(new Event('ended')), 0")
  assert seen(page) == "The camera is gone." and not page.evaluate("byId('camera').checked || talk.webcam.open")
  start()  # The tracker fails.
  page.evaluate("talk.webcam.hear({ trouble: 'this is dark' }), 0")
  assert seen(page) == "The tracker has failed: this is dark" and not page.evaluate("byId('camera').checked || talk.webcam.open")
  start()  # It is another.
  page.evaluate("talk.webcam.hear({ names: ['jawOpen', '_neutral'] }), 0")
  assert seen(page).startswith("The tracker is not the one") and not page.evaluate("talk.webcam.open")
  start()  # It stands still.
  until(page, "talk.webcam.seen")
  page.evaluate("talk.webcam.video.pause(), 0")
  until(page, "byId('seen').innerText === 'The camera gives no pictures.'")
  assert page.evaluate("talk.webcam.motion(performance.now()) === null && talk.ready")
  page.evaluate("talk.webcam.script = '../tracker/nothing.js', 0")  # It is not there.
  page.key("c")
  page.key("c")
  until(page, "byId('seen').innerText.startsWith('The tracker does not run')")
  assert page.evaluate("talk.ready") and not page.evaluate("talk.webcam.open")
  page.evaluate("talk.webcam.script = '../tracker/tracker_worker.js', 0")
  page.errors.clear()  # The browser says of each file that it does not find.


def test_features_and_motion_are_those_of_the_fit(page):
  rng = np.random.default_rng(0)
  names = 6
  turns = Rotation.from_rotvec(0.4 * rng.normal(size=(20, 3)))
  matrices = np.tile(np.eye(4), (20, 1, 1))
  matrices[:, :3, :3], matrices[:, :3, 3] = 1.7 * turns.as_matrix(), rng.normal(size=(20, 3))
  scores = rng.uniform(size=(20, names))
  weights, bias = rng.normal(size=(56, names + 3)), 0.1 * rng.normal(size=56)
  least, most = -rng.uniform(0.3, 1, 56), rng.uniform(0.3, 1, 56)
  still = slice(0, 7)
  # One picture of seven is a blink; the head stands still.
  matrices[still] = matrices[0]
  scores[still] = scores[0] + np.array([0, 0.01, -0.01, 0.02, -0.02, 0.9, -0.9])[:, None]
  column = lambda matrix: matrix.T.ravel().tolist()
  outputs = [{"scores": s.tolist(), "matrix": column(m)} for s, m in zip(scores, matrices)]
  face_map = {"weights": weights.tolist(), "bias": bias.tolist(), "least": least.tolist(), "most": most.tolist()}
  found = page.evaluate(f"""(() => {{
    const face = new FaceMap({face_map}), outputs = {outputs};
    face.calibrate(outputs.slice(0, 7));
    return outputs.map((output) => [[...face.features(output)], [...face.motion(output)]]);
  }})()""")
  expected = np.concatenate([scores - np.median(scores[still], axis=0), (turns[0].inv() * turns).as_rotvec()], axis=1)
  expected[still, names:] = 0
  for (features, motion), x in zip(found, expected):
    np.testing.assert_allclose(features, x, atol=1e-6)
    np.testing.assert_allclose(motion, np.clip(weights @ x + bias, least, most), atol=1e-5)


def test_nothing_of_the_camera_leaves_the_origin(page):
  # The browser keeps the tracker's thread from asking elsewhere.
  with socket.create_server(("127.0.0.1", 0)) as elsewhere:
    elsewhere.setblocking(False)
    if page.evaluate("talk.webcam.open"):
      page.key("c")
      until(page, "!talk.webcam.open")
    use_camera(page, "painted")
    address = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/"
    page.evaluate(f"talk.webcam.script = '../tracker/tracker_worker.js#{address}', 0")
    page.key("c")
    until(page, "byId('seen').innerText === 'The tracker has failed: Failed to fetch'")
    with pytest.raises(BlockingIOError):
      elsewhere.accept()
    page.evaluate("talk.webcam.script = '../tracker/tracker_worker.js', 0")
    assert all("Content Security Policy" in error for error in page.errors)
    page.errors.clear()
  assert page.requests and all(address.startswith(page.origin) for address in page.requests)
  assert not page.errors


def test_without_a_tracker_the_page_says_how_to_get_it(tmp_path):
  write_film(tmp_path / "a.mjpeg", [np.zeros((120, 160, 3), np.uint8)])
  with open_page(tmp_path, Camera({"trouble": "that needs a command, once"}), tmp_path / "a.mjpeg") as page:
    assert seen(page) == "Your face is not seen: that needs a command, once." and page.evaluate("byId('camera').disabled")
    page.key("c")
    page.key("s")
    until(page, "talk.ready")
    assert not page.errors


# --- The real tracker, on a film whose truth is known


def prepare_real():
  """The camera with the real tracker, or None."""
  with contextlib.suppress(InputError):
    found = prepare_camera(tracker_folder(None), load_map()["basis"])
    return found if found.files else None
  return None


BLOCKS = 10  # Of a picture's number, in black and white, from above.


def filmed(person, conversation):
  """A filmed conversation on a wide picture, at rest for three seconds in front, each picture with its number; and its motion."""
  folder = ASSETS / person
  with np.load(folder / "capture.npz", allow_pickle=False) as file:
    table = dict(file)
  k = next(i for i, name in enumerate(table["conversation"]) if name.startswith(conversation))
  first, count = table["first_timestep"][k], table["num_frames"][k]
  places = np.flatnonzero((table["timesteps_0"] >= first) & (table["timesteps_0"] < first + count))
  motion = np.concatenate([table["expr"], table["jaw_pose"], table["neck_pose"]], axis=1)[table["timesteps_0"][places]]
  still = np.abs(motion[:, : EXPRESSION_DIM + 1]).sum(1) + 3 * np.abs(motion[:, MOTION_GROUPS["pose"]]).sum(1)
  calm = np.sort(np.argsort(still)[:15])
  order = np.concatenate([np.repeat(calm, 3 * RATE // len(calm)), np.arange(len(places))])
  pictures = []
  for number, place in enumerate(order):
    face = Image.fromarray(read_video_frame(folder / "camera_0.mp4", int(places[place]))).resize((480, 480), Image.Resampling.BICUBIC)
    picture = np.full((480, 640, 3), 255, np.uint8)
    picture[:, 80:560] = np.asarray(face)
    for block in range(BLOCKS):
      picture[48 * block : 48 * block + 48, :60] = 255 * (number >> block & 1)
    pictures.append(picture)
  return pictures, motion[order]


@pytest.mark.skipif(BROWSER is None or prepare_real() is None, reason="needs the tracker: python -m rsatalker_jax tracker")
@pytest.mark.parametrize("person, conversation", [("capture", "demo-d009"), ("capture_amara", "demo-d009")])
def test_the_tracker_follows_a_film(tmp_path, person, conversation):
  pictures, truth = filmed(person, conversation)
  write_film(tmp_path / "a.mjpeg", pictures)
  with open_page(tmp_path, prepare_real(), tmp_path / "a.mjpeg") as page:
    page.evaluate(f"""window.found = [], window.number = null; {{
      const make = createImageBitmap, {{ webcam }} = talk, take = webcam.take.bind(webcam);
      const context = new OffscreenCanvas(640, 480).getContext("2d", {{ willReadFrequently: true }});
      window.createImageBitmap = async (...given) => {{
        const picture = await make(...given);
        context.drawImage(picture, 0, 0, 640, 480);
        window.number = 0;
        for (let i = 0; i < {BLOCKS}; i++) window.number += (context.getImageData(30, 48 * i + 24, 1, 1).data[0] > 127) << i;
        return picture;
      }};
      webcam.take = (data) => {{
        take(data);
        if (data.scores && webcam.seen) found.push([window.number, ...webcam.seen.motion]);
      }};
    }}""")
    page.key("c")
    until(page, "talk.webcam.calibrated")
    # The film goes round and round: on a busy machine a few pictures of each round are looked at.
    until(page, f"found.filter(([number]) => number >= {3 * RATE}).length > 150", 400)
    found = np.array(page.evaluate("found"))
    print(f"{len(found)} pictures, from a picture to its motion {np.median(page.evaluate('talk.webcam.durations')):.0f} ms in the middle")
    assert all(address.startswith(page.origin) for address in page.requests)
    assert not [error for error in page.errors if "Content Security Policy" in error]  # The tracker tells other things there.
  found = found[found[:, 0] >= 3 * RATE]
  expected = truth[found[:, 0].astype(int)]
  column = {name: i for i, name in enumerate(ARKIT_EXPRESSIONS)} | {"jaw": 50, "pitch": 53, "yaw": 54, "tilt": 55}
  r = {name: float(np.corrcoef(found[:, 1 + i], expected[:, i])[0, 1]) for name, i in column.items() if expected[:, i].std() > 0.01}
  r["blink"] = (r["eyeBlinkLeft"] + r["eyeBlinkRight"]) / 2
  r["smile"] = (r["mouthSmileLeft"] + r["mouthSmileRight"]) / 2
  print({name: round(r[name], 3) for name in ("yaw", "pitch", "tilt", "jaw", "blink", "smile")})
  assert r["yaw"] >= 0.95 and r["jaw"] >= 0.9 and r["blink"] >= 0.9
