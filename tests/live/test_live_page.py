"""The page of a conversation in a browser with a microphone that plays a file: latency, sound against picture, interruptions,
lost sockets, and that nothing leaves its origin.

The probe in the generator's place opens the jaw as A is loud and shows in coefficient 2 how loud B is.
"""

import contextlib
import dataclasses
import functools
import time

import aiohttp.web
import jax
import numpy as np
import pytest
import scipy.io.wavfile
import scipy.signal

from live import probe
from media.browser import BROWSER, OpenPage
from media.test_offsets_script import NAMES, random_offsets
from rsatalker_jax.avatar import init_avatar
from rsatalker_jax.data.audio import resample
from rsatalker_jax.head import load_head
from rsatalker_jax.live.eliza import Eliza
from rsatalker_jax.live.engine import describe_avatar
from rsatalker_jax.live.recording import RecordingFolder, read_recording
from rsatalker_jax.live.server import LiveServer
from rsatalker_jax.live.worker import Worker
from rsatalker_jax.social.folding import fold_offsets
from served import serving_in_thread
from tiny_world import write_head

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium: apt-get install chromium-headless-shell")

BURST, PAUSE = 0.28, 0.52  # Seconds of A's sound.
LEVEL = 0.012  # -38 dB: too quiet for an interruption without headphones, loud enough for one with them.
# B's sound: noise, every piece of which tells where in it it is.
NOISE = np.random.default_rng(1).uniform(-0.2, 0.2, 640 * 25 * 8).astype(np.float32)

# What the test knows of sound and picture, apart from what the page makes of it: when A's frames were over and how loud they were,
# what was drawn when, and when B's sound left the loudspeaker.
WATCH = """
window.heard = [], window.drawn = [], window.played = [], window.clocks = [], window.answers = [], window.pauses = [];
let before = performance.now();
setInterval(() => { pauses.push(performance.now() - before), before = performance.now(); }, 20);
const hear = talk.hear.bind(talk), show = talk.face.show.bind(talk.face);
talk.hear = (frame) => {
  if (talk.sound) heard.push([performance.now() - 1000 * (talk.sound.context.currentTime - frame.time), frame.level]);
  hear(frame);
};
const add = talk.clock.add.bind(talk.clock);
talk.clock.add = (number, motion) => {
  answers.push([number, motion[2]]);
  add(number, motion);
};
talk.face.show = (motion, ...rest) => {
  drawn.push([performance.now(), motion[50], motion[2], motion[0], motion[1], motion[4]]);
  show(motion, ...rest);
};
// Every sample that goes to the loudspeaker, with the context's time of the first of each block; and, now and then, which time of the
// context is when on the page's clock.
async function watchSound() {
  const { context, loudspeaker } = talk.sound;
  await context.audioWorklet.addModule("tap.js");
  const tap = new AudioWorkletNode(context, "tap", { numberOfOutputs: 0 });
  tap.port.onmessage = ({ data }) => played.push(data);
  loudspeaker.connect(tap);
  const look = () => {
    if (!talk.sound || talk.sound.context !== context) return;
    setTimeout(look, 20);
    const { contextTime, performanceTime } = context.getOutputTimestamp();
    if (performanceTime > 0) clocks.push([contextTime, performanceTime]);
  };
  look();
}
"""


TAP = """registerProcessor("tap", class extends AudioWorkletProcessor {
  process([[samples]]) {
    if (samples) this.port.postMessage([currentTime, ...samples.map((x) => Math.round(32768 * x))]);
    return true;
  }
});
"""


async def answer_with(script, _):
  return aiohttp.web.Response(text=script, content_type="text/javascript")


class Elsewhere(Eliza):
  about = {"name": "a-model", "where": "api.example.org", "local": False}


def hum(sentence):
  """Half a second a letter: it lasts longer than anything that a busy machine has to do meanwhile."""
  return (0.1 * np.sin(0.3 * np.arange(8000 * len(sentence)))).astype(np.float32), 16000


@pytest.fixture(scope="module")
def page(tmp_path_factory):
  folder = tmp_path_factory.mktemp("live")
  rate, rng = 48000, np.random.default_rng(0)
  burst = LEVEL * rng.normal(size=int(BURST * rate))
  sound = np.concatenate([np.zeros(int(PAUSE * rate)), burst])
  scipy.io.wavfile.write(folder / "a.wav", rate, np.round(32767 * np.tile(sound, 5)).astype(np.int16))
  write_head(folder / "head.npz")
  head = load_head(folder / "head.npz")
  avatar = jax.device_get(init_avatar(head, np.zeros(2, np.float32), num_gaussians=len(head.faces), sh_degree=0))
  net, params, queries = random_offsets(len(head.faces))
  about, tables = describe_avatar(avatar, head, (0.5, 0.6, 0.7), "probe", fold_offsets(net, params, queries, {}))
  other, others_tables = describe_avatar(dataclasses.replace(avatar, gaussians=moved(avatar.gaussians)), head, (0.1, 0.2, 0.3), "probe")
  about |= {"relations": NAMES, "person": "ann", "others": {"b/ob": other}}
  worker = Worker(probe.ProbeEngine, 3, 2, about, tables, {"b/ob": others_tables}, own_process=False)
  made_by = dict(basis="arkit", places=2, generator="", frames_ahead=3, stages="", person="", workdir="runs/probe", avatar_from=None)
  options = dict(recordings={"noise.wav": NOISE}, conversations=2, say=hum, answerer=Elsewhere())
  options |= dict(records=RecordingFolder(folder / "kept", made_by))
  flags = (
      "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", f"--use-file-for-fake-audio-capture={folder / 'a.wav'}",
      "--autoplay-policy=no-user-gesture-required",
  )  # fmt: skip
  with contextlib.ExitStack() as stack:
    stack.callback(worker.stop)

    def make_app(origins):
      app = LiveServer(worker, "token", origins, **options).make_app()
      app.router.add_get("/token/tap.js", functools.partial(answer_with, TAP))
      return app

    port = stack.enter_context(serving_in_thread(make_app))
    address = f"http://127.0.0.1:{port}/token/"
    opened = stack.enter_context(OpenPage(address, folder / "profile", holds_clock=False, options=flags))
    opened.address, opened.kept = address, folder / "kept"
    opened.corrections = np.asarray(net.apply(params, queries, np.full(len(NAMES), 30.5, np.float32), np.zeros((len(NAMES), 56), np.float32)))
    opened.resize(320, 240)  # Pixels are drawn in software here.
    opened.evaluate("ready.then(() => null)")
    opened.evaluate(WATCH)
    yield opened
    opened.open("about:blank")


MOVED = 0.25  # Of a triangle's size.


def moved(gaussians):
  return dataclasses.replace(gaussians, means=gaussians.means + MOVED)


def until(page, expression):
  while not page.evaluate(expression):
    time.sleep(0.02)


def is_busy(page, drawn):
  """Whether the machine has so much else to do that times tell nothing: a timer of 20 ms often takes twice as long, or a picture in twenty
  comes three frames of the screen after the one before, or a tenth of a second."""
  between = np.diff(drawn[:, 0])
  return np.percentile(page.evaluate("pauses.splice(0)"), 90) > 40 or np.percentile(between, 95) > 50 or between.max() > 100


def text(page, name):
  return page.evaluate(f"byId('{name}').innerText")


def rises(times, values, threshold):
  """Times at which values rise above a threshold, between two of them."""
  found = np.flatnonzero((values[1:] > threshold) & (values[:-1] <= threshold))
  share = (threshold - values[found]) / (values[found + 1] - values[found])
  return times[found] + share * (times[found + 1] - times[found])


def picture_minus_sound(played, drawn, clocks, answers):
  """How much later than the loudspeaker's sound what each picture shows is, in ms, while B says `NOISE`.

  The sound is known by itself: 40 ms of what went to the loudspeaker are looked for in the noise. The picture shows its frame's number.
  What the browser tells of when sound leaves the loudspeaker is a line through all that it told.
  """
  starts, sound = played[:, 0], played[:, 1:].ravel() / 32768
  rate = round((played.shape[1] - 1) / np.median(np.diff(starts)))
  gaps = np.diff(starts - starts[0] - np.arange(len(starts)) * (played.shape[1] - 1) / rate)
  assert abs(gaps.sum()) < 1e-3 and np.mean(np.abs(gaps) > 1e-3) < 0.01  # No block is missing, though a few are told a block's time late.
  noise, length = resample(NOISE, 16000, rate), rate // 25
  places = []  # Seconds of the context, seconds of the noise.
  for first in range(0, len(sound) - length, length):
    piece = sound[first : first + length]
    likeness = scipy.signal.correlate(noise, piece, "valid", "fft")
    best = np.argmax(likeness)
    if likeness[best] > 0.9 * np.linalg.norm(piece) * np.linalg.norm(noise[best : best + length]) > 0:
      places.append([starts[0] + first / rate, best / rate])
  places = np.array(places)
  began = answers[np.flatnonzero(answers[:, 1])[0], 0] + 3  # The probe shows what it hears, which is 3 frames ahead.
  slope, offset = np.polyfit(clocks[:, 0], clocks[:, 1], 1)  # Of the page's clock, ms, by the context's, s.
  heard = np.interp(drawn[:, 0], slope * places[:, 0] + offset, places[:, 1], left=np.nan, right=np.nan)
  shown = (drawn[:, 5] - began + 0.5) / 25  # A frame's motion is that of its middle.
  differences = 1000 * (shown - heard)
  return differences[np.isfinite(differences)]


def test_offset_corrections_are_drawn(page):
  """Eq. 8's of the frame and the relation that are shown, before anything is said."""
  check = lambda name, value: f'document.querySelector("[name={name}][value={value}]").checked = true;'
  choose = lambda blood, equal: check("blood", blood) + check("equal", equal)
  made = page.evaluate(f"""(() => {{
    const {{ face }} = talk, centres = () => face.avatar.triangles.filter((_, i) => i % 12 > 8), out = [];
    face.avatar.pose(face.head.pose(new Float32Array(56)));
    const plain = centres();
    {choose("non_blood", "unknown")}
    talk.place = 30.5, talk.shown = new Float32Array(56);
    talk.draw(performance.now());
    const corrected = centres();
    {choose("blood", "equal")}
    talk.place = null, talk.shown = new Float32Array(56);
    return [...corrected].map((x, i) => x - plain[i]);
  }})()""")
  assert NAMES[3] == "non_blood,unknown"
  np.testing.assert_allclose(np.reshape(made, (-1, 3)), page.corrections[3], rtol=0, atol=3e-6)


def test_another_face_is_chosen(page):
  """Its Gaussians, its background, its offset corrections (it has none); and back."""
  until(page, "talk.face && !byId('faces').hidden")
  assert page.evaluate("[...byId('face').options].map((x) => x.text)") == ["ann", "b/ob"]
  state = """(() => { const { face } = talk; return [[...face.avatar.means.subarray(0, 3)], face.screen.canvas.style.background, !face.offsets,
    face.about.relations.length, face.about.background]; })()"""
  before = page.evaluate(state)
  choose = lambda name: page.evaluate(f"byId('face').value = '{name}', byId('face').dispatchEvent(new Event('change'))")
  choose("b/ob")
  until(page, "!talk.face.offsets")
  after = page.evaluate(state)
  np.testing.assert_allclose(np.subtract(after[0], before[0]), MOVED, atol=1e-3)
  assert before[2] is False and before[1] != after[1] and after[3] == len(NAMES) and after[4] == [0.1, 0.2, 0.3]
  choose("ann")
  until(page, "talk.face.offsets")
  assert page.evaluate(state) == before


def test_a_conversation(page):
  assert text(page, "start").startswith("Start") and "Not started" in text(page, "status")
  page.key("s")
  until(page, "talk.ready")
  assert text(page, "status") == "Listening. Speak." and text(page, "start").startswith("Stop")
  page.evaluate("watchSound()")

  # A's bursts open the jaw.
  page.evaluate("heard.length = drawn.length = pauses.length = 0")
  until(page, "heard.length > 150")
  heard, drawn = (np.array(page.evaluate(name)) for name in ("heard", "drawn"))
  onsets = [heard[i, 0] for i in range(1, len(heard)) if heard[i, 1] > 0.2 * LEVEL >= heard[i - 1, 1]]
  opened = rises(drawn[:, 0], drawn[:, 1], probe.GAIN * LEVEL / 4)
  answers = [min((x for x in opened if x >= onset - 40), default=np.inf) - onset for onset in onsets[1:-1]]
  assert len(answers) >= 4
  print("burst to picture, ms, median:", round(float(np.median(answers)), 1))
  due = np.array(page.evaluate("talk.latencies"))
  print("frame to answer due, ms, median and p99:", np.percentile(due, [50, 99]).round(1).tolist())
  print("there and back, ms, median:", round(float(np.median(page.evaluate("talk.trips"))), 1))
  assert len(due) > 100
  if not is_busy(page, drawn):
    assert np.median(answers) < 200 and np.median(due) < 100
  assert "Answers are due" in text(page, "numbers")

  # The relation, by keyboard.
  page.key("b")
  until(page, "drawn.at(-1)[3] === 0 && drawn.at(-1)[4] === 1")
  assert page.evaluate("relation()") == "non_blood,equal"

  # B speaks: sound and picture at one time.
  page.evaluate("played.length = drawn.length = clocks.length = answers.length = pauses.length = 0")
  page.key("p")
  until(page, "byId('saying').innerText === 'noise.wav'")
  until(page, "talk.holding")
  until(page, "!talk.holding")
  offsets = picture_minus_sound(*(np.array(page.evaluate(name)) for name in ("played", "drawn", "clocks", "answers")))
  percentiles = np.percentile(offsets, [0.5, 50, 99.5]).round(1).tolist()
  within = np.mean(np.abs(offsets) <= 20)
  print(f"picture minus sound, ms, 0.5 %, median, 99.5 %: {percentiles}; within 20: {100 * within:.1f} % of {len(offsets)} pictures")
  if not is_busy(page, np.array(page.evaluate("drawn"))):
    assert len(offsets) > 100 and within > 0.9 and abs(np.median(offsets)) < 10

  # A interrupts, which with headphones a quiet voice may.
  page.key("h")
  until(page, "talk.ready && talk.latencies.length > 5")
  page.key("p")
  until(page, "byId('saying').innerText === 'noise.wav'")
  until(page, "byId('saying').innerText === ''")
  assert not page.errors


def test_it_is_recorded_while_the_button_says_so(page):
  if not page.evaluate("talk.ready"):
    page.key("s")
    until(page, "talk.ready")
  assert "while you record, and only then" in text(page, "storing") and not list(page.kept.iterdir())
  page.key("r")
  until(page, "talk.recorder.on")
  until(page, "byId('record').innerText.startsWith('Recording, 1 s')")
  assert page.evaluate("byId('record').getAttribute('aria-pressed')") == "true"
  page.key("r")
  until(page, "byId('recorded').innerText.startsWith('Kept as 2')")
  assert text(page, "record").startswith("Record ") and page.evaluate("byId('record').getAttribute('aria-pressed')") == "false"
  (first,) = page.kept.iterdir()
  found = read_recording(first)
  assert found.about["frames"] >= 20 and np.abs(found.speech_a).max() > LEVEL
  page.key("r")  # And one that a lost connection ends.
  until(page, "talk.recorder.on")
  time.sleep(0.6)
  page.evaluate("talk.socket.close(), 0")
  until(page, "!talk.recorder.on")
  second = page.evaluate("byId('recorded').innerText").partition(" as ")[2].rstrip(".")
  while not (page.kept / second).exists():
    time.sleep(0.02)
  assert read_recording(page.kept / second).about["ended"] == "the page left" and "with the connection" in text(page, "recorded")
  until(page, "talk.ready")
  assert not page.evaluate("talk.recorder.on") and text(page, "record").startswith("Record ")


def test_a_lost_socket_is_opened_again(page):
  if not page.evaluate("talk.ready"):
    page.key("s")
    until(page, "talk.ready")
  page.evaluate("window.old = talk.socket, old.close()")
  until(page, "!talk.ready")
  assert "trying again" in text(page, "status")
  until(page, "talk.ready && talk.socket !== old")
  page.evaluate("drawn.length = 0, heard.length = 0")
  until(page, "drawn.length && drawn.at(-1)[5] > 5")
  assert text(page, "status") == "Listening. Speak."


def test_what_goes_wrong_is_said(page):
  if page.evaluate("talk.running"):
    page.key("s")
  until(page, "!talk.running")
  assert text(page, "status") == "Stopped."
  page.evaluate("window.real = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices), 0")
  for name, part in (("NotAllowedError", "may not use the microphone"), ("NotFoundError", "no microphone")):
    page.evaluate(f"navigator.mediaDevices.getUserMedia = async () => {{ throw new DOMException('', '{name}'); }}, 0")
    page.key("s")
    until(page, "byId('trouble').innerText")
    assert part in text(page, "trouble") and not page.evaluate("talk.running")
    until(page, "!byId('start').disabled")
  page.evaluate("navigator.mediaDevices.getUserMedia = real, 0")


def test_words(page):
  if page.evaluate("byId('headphones').checked"):
    page.key("h")  # A's bursts are no interruptions then.
    until(page, "!byId('headphones').checked && !byId('start').disabled")
  if not page.evaluate("talk.ready"):
    if not page.evaluate("talk.running"):
      page.key("s")
    until(page, "talk.ready")
  page.key("w")
  for key in "hi <b>":
    page.key(key)
  assert page.evaluate("byId('letter').value") == "hi <b>" and page.evaluate("byId('headphones').checked") is False
  page.evaluate("byId('transcript').replaceChildren()")
  page.key("Enter")
  until(page, "byId('transcript').innerText.endsWith('today?')")
  assert text(page, "transcript").split("\n") == ["You: hi <b>", "The face: Hello. How are you today?"]
  assert page.evaluate("byId('letter').value") == "" and text(page, "saying") == "How are you today?"
  page.evaluate("byId('quiet').click()")
  until(page, "byId('transcript').lastElementChild.classList.contains('cut')")
  page.evaluate("talk.transcript.hear(7, 'I am'), talk.transcript.hear(7, 'I am here'), talk.transcript.hear(8, 'Yes')")
  page.evaluate("talk.transcript.part(), talk.transcript.hear(8, 'No')")  # Of another conversation.
  assert text(page, "transcript").split("\n")[2:] == ["You: I am here", "You: Yes", "You: No"]


def test_the_page_says_where_words_go(page):
  assert text(page, "away") == "Your words leave this machine: they go to api.example.org."
  assert "What you write goes, as text, to another machine: api.example.org, where the model a-model answers." in text(page, "way")
  describe = lambda about: page.evaluate(f"describeWay({about})")
  alone = describe("{ answerer: null, understands: false }")
  assert alone == {"way": "", "away": False}
  near = describe("{ answerer: { name: 'm', where: '127.0.0.1:80', local: true }, understands: true }")
  assert not near["away"] and "What you say and write goes, as text, to 127.0.0.1:80 on the same machine" in near["way"]
  toy = describe("{ answerer: { name: 'eliza', where: '', local: true }, understands: true }")
  assert not toy["away"] and "ELIZA, a toy" in toy["way"] and "itself turns your sound into words" in toy["way"]
  named = describe("{ answerer: { name: 'eliza', where: 'far.example', local: false }, understands: false }")
  assert named["away"] and "far.example" in named["way"]


def test_nothing_leaves_the_origin(page):
  origin = page.address.removesuffix("/token/")
  assert page.requests and all(address.startswith(origin) for address in page.requests)
  assert not page.errors
