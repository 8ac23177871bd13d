"""The page that listens without a server: what it holds, and a conversation with it in a browser."""

import base64
import re

import numpy as np
import pytest
import soundfile

from media.browser import BROWSER, OpenPage
from media.test_generator_script import FULL, conversation, random_generator, speech_settings
from media.scripts import run_scripts
from media.test_offsets_script import random_offsets
from rsatalker_jax.errors import InputError
from rsatalker_jax.media import listener
from rsatalker_jax.media.tables import Tables
from rsatalker_jax.motion import MotionStream
from rsatalker_jax.motion.folding import fold_generator
from rsatalker_jax.social.folding import fold_offsets
from rsatalker_jax.speech import LogMel

ENCODER = LogMel(num_mels=3, causal=True)
RELATIONS = ("blood,equal", "non_blood,unequal", "unknown")
FAKE_MICROPHONE = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--autoplay-policy=no-user-gesture-required"]
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium: apt-get install chromium-headless-shell")


@pytest.fixture(scope="module")
def model():
  """The generator, its variables and social features, and what a page has of them."""
  generator, variables, socials = random_generator(ENCODER, **FULL)
  variables["statistics"]["motion_std"] *= 0.2  # 0.02 to 0.3, as real motion's.
  settings, weights = fold_generator(generator, variables, socials)
  return (generator, variables, socials), settings | {"speech": speech_settings(ENCODER, True)}, weights


@pytest.fixture(scope="module")
def page(tmp_path_factory, avatar, head, model):
  path = tmp_path_factory.mktemp("listener") / "A & B.html"
  size = listener.write_listener(path, avatar, head, *model[1:], RELATIONS, background=(0.2, 0.5, 0.9))
  assert size == path.stat().st_size
  return path


def test_page_holds_all_and_asks_for_nothing(page):
  text = page.read_text()
  assert "<title>A &amp; B</title>" in text and "@@" not in text
  assert f"in this file, {page.stat().st_size / 1e6:.1f} MB:" in text
  assert "default-src 'none'" in text and not re.search(r"https?:|//\w+\.\w+|@import|fetch\(|XMLHttp|WebSocket", text)


def test_weights_of_16_bits_move_the_motion_by_less_than_a_ten_thousandth(tmp_path, model):
  """A minute, through the page's own tables and its way from the sound's rate; 16 kHz is left as it is."""
  (generator, variables, socials), settings, weights = model
  wavs, _ = conversation(1500)
  tables = Tables("run")
  tables.add_arrays(weights)
  main = """async ({ settings, tables, arrays, packed, heard, own }) => {
    const read = readTables(tables, await unzip(packed)), weights = {}, out = [];
    for (const name of arrays) weights[name] = readFrame(read[name], 0);
    const conversation = new Conversation({ settings, weights }, 16000);
    conversation.relation = 1;
    for (let i = 0; i < heard.length; i += 1000) {
      for (const motion of conversation.push(heard.subarray(i, i + 1000), own.subarray(i, i + 1000))) out.push(...motion);
    }
    return Float32Array.from(out);
  }"""
  made = run_scripts(
      ["tables.js", *listener.GENERATOR_SCRIPTS], main, tmp_path / "run", settings=settings, tables=tables.descriptions,
      arrays=list(weights), packed=tables.pack(), heard=wavs[0], own=wavs[1],
  ).reshape(-1, 56)  # fmt: skip
  stream = MotionStream(generator, variables, socials[1], encoder=ENCODER, level=True, lengths=(25,))
  expected = stream.push(wavs[0], np.tile(variables["statistics"]["motion_mean"], (1500, 1)), wavs[1])
  assert len(made) == 1500 and (expected - expected.mean(axis=0)).std() > 0.01
  np.testing.assert_allclose(made, expected, rtol=0, atol=1e-4)


def test_own_face_is_guessed_by_a_second_stream_with_places_swapped(tmp_path, model):
  (generator, variables, socials), settings, weights = model
  wavs, _ = conversation(20)
  main = """({ settings, weights, heard, own }) => {
    const conversation = new Conversation({ settings, weights }, 16000);
    conversation.guesses = true;
    return Float32Array.from(conversation.push(heard, own).flatMap((motion) => [...motion]));
  }"""
  inputs = dict(settings=settings, weights=weights, heard=wavs[0], own=wavs[1])
  made = run_scripts(list(listener.GENERATOR_SCRIPTS), main, tmp_path / "run", **inputs).reshape(-1, 56)
  b, a = (MotionStream(generator, variables, socials[0], encoder=ENCODER, level=True, lengths=(1,)) for _ in range(2))
  expected = [np.zeros((1, 56), np.float32)]
  for wav_a, wav_b in zip(*wavs.reshape(2, 20, 640), strict=True):
    expected.append(b.push(wav_a, a.push(wav_b, expected[-1], wav_a), wav_b))
  np.testing.assert_allclose(made, np.concatenate(expected[1:]), rtol=0, atol=2e-5)


@pytest.mark.parametrize("rate", [48000, 44100, 16000, 8000])
def test_sound_of_any_rate_is_heard_at_16_kilohertz(tmp_path, rate):
  """In pieces of odd lengths: tones keep size and time, what 16 kHz cannot hold is gone."""
  time = lambda rate: np.arange(rate // 2) / rate
  tones = lambda rate: np.sin(2 * np.pi * 300 * time(rate)) + 0.5 * np.cos(2 * np.pi * 2500 * time(rate))
  main = """({ wav, rate }) => {
    const resampler = new Resampler(rate), out = [];
    for (let i = 0, n = 1; i < wav.length; i += n, n = n * 7 % 401) out.push(...resampler.push(wav.subarray(i, i + n)));
    return Float32Array.from(out);
  }"""
  wav = tones(rate) + (np.sin(2 * np.pi * 11000 * time(rate)) if rate > 22050 else 0)
  out = run_scripts(list(listener.GENERATOR_SCRIPTS), main, tmp_path / "run", wav=wav.astype(np.float32), rate=rate)
  assert 7900 < len(out) <= 8000
  np.testing.assert_allclose(out[100:], tones(16000)[100 : len(out)], rtol=0, atol=5e-4)


@needs_browser
def test_head_listens_to_a_microphone(page, tmp_path):
  """It answers each 40 ms of the sound device's clock, and what it shows moves with what it hears."""
  time = np.arange(48000 * 4) / 48000
  bursts = 0.5 * np.sin(2 * np.pi * 220 * time) * (np.sin(2 * np.pi * time) > 0)
  soundfile.write(tmp_path / "voice.wav", bursts.astype(np.float32), 48000, subtype="PCM_16")
  soundfile.write(tmp_path / "words.wav", (0.3 * np.sin(np.arange(16000))).astype(np.float32), 8000, subtype="PCM_16")
  options = [*FAKE_MICROPHONE, f"--use-file-for-fake-audio-capture={tmp_path / 'voice.wav'}"]
  with OpenPage(page, tmp_path / "profile", holds_clock=False, options=options) as opened:
    state = """ready.then((p) => ({
      frames: p.conversation.frames, at: p.sound.context.currentTime, message: byId("message").textContent,
      button: byId("start").textContent, place: p.place, newest: p.newest, motions: p.motions.map((x) => [...x]),
    }))"""
    opened.evaluate("""ready.then((p) => { p.draw = () => {}; byId("start").click(); })""")  # Drawing in software takes all there is.


    def wait(condition: str) -> None:
      """At most two minutes, for busy machines."""
      said = opened.evaluate(f"""new Promise((resolve) => {{
        const began = Date.now(), look = async () => {{
          if (await ready.then((p) => {condition})) return resolve(null);
          return Date.now() > began + 120000 ? resolve(byId("message").textContent) : setTimeout(look, 50);
        }};
        look();
      }})""")
      assert said is None, (condition, said)

    wait("p.conversation && p.conversation.frames > 10")
    first = opened.evaluate(state)
    wait(f"p.conversation.frames > {first['frames']} + 50")
    second = opened.evaluate(state)
    assert second["button"] == "Stop" and second["message"] == "Listening. Nothing is recorded."
    seconds = second["at"] - first["at"]
    # On a busy machine frames wait, and come all at once.
    assert abs(second["frames"] - first["frames"] - 25 * seconds) < max(12, 8 * seconds), (first["frames"], second["frames"], seconds)
    assert np.ptp(second["motions"], axis=0).max() > 0.01
    assert second["newest"] == second["frames"] - 1 and -2 <= second["place"] - second["newest"] <= 0
    opened.evaluate("""byId("relation").value = "unknown", byId("relation").dispatchEvent(new Event("change"))""")
    opened.evaluate("""byId("face").value = "guessed", byId("face").dispatchEvent(new Event("change"))""")
    assert opened.evaluate("ready.then((p) => [p.conversation.relation, p.conversation.guesses])") == [2, True]
    opened.evaluate("byId('words').dispatchEvent(new Event('change'))")  # Without a file it says nothing.
    choose = lambda content: opened.evaluate(f"""(() => {{
      const bytes = Uint8Array.from(atob("{base64.b64encode(content).decode()}"), (c) => c.charCodeAt(0)), files = new DataTransfer();
      files.items.add(new File([bytes], "words.wav"));
      byId("words").files = files.files, byId("words").dispatchEvent(new Event("change"));
    }})()""")
    choose(b"no sound")
    wait("byId('message').textContent === 'That file holds no sound that this browser knows.'")
    opened.evaluate("""ready.then((p) => {
      window.late = [];  // Frames from what the loudspeaker plays to what is drawn.
      p.draw = () => p.speaks && late.push((p.sound.played() - p.first - p.sound.hold) / p.sound.rate * 25 - 0.5 - p.place);
      const { push } = p.conversation;
      p.conversation.push = (heard, own) => (window.loudest = Math.max(window.loudest ?? 0, ...own), push.call(p.conversation, heard, own));
    })""")
    choose((tmp_path / "words.wav").read_bytes())
    wait("p.speaks")
    wait("!p.speaks")
    assert abs(opened.evaluate("late.sort((a, b) => a - b)[late.length >> 1]")) < 1
    assert 0.25 < opened.evaluate("loudest") < 0.35
    opened.evaluate("""byId("start").click()""")
    wait("byId('start').textContent === 'Start'")
    assert opened.evaluate("ready.then((p) => [p.conversation, byId('message').textContent])") == [None, "Stopped."]
    assert opened.requests == [page.as_uri()] and not opened.errors


@needs_browser
def test_page_draws_the_answer_and_says_what_is_missing(page, tmp_path):
  with OpenPage(page, tmp_path / "profile", options=["--use-fake-device-for-media-stream"]) as opened:
    picture = lambda: np.frombuffer(base64.b64decode(opened.evaluate("""ready.then((p) => {
      p.draw(48, 48);
      return p.screen.canvas.toDataURL("image/png").split(",")[1];
    })""")), np.uint8)
    at_rest = picture()
    opened.evaluate("""ready.then((p) => {
      p.begin(16000);
      const wav = Float32Array.from({ length: 6400 }, (_, i) => 0.5 * Math.sin(i * i / 5000));
      for (let i = 0; i < 6400; i += 160) p.hear({ end: i + 160, heard: wav.subarray(i, i + 160), own: wav.subarray(i, i + 160), speaks: false });
      p.place = p.newest;
    })""")
    assert opened.evaluate("ready.then((p) => [p.newest, p.first])") == [9, 0]
    between = opened.evaluate("ready.then((p) => [[...p.motionAt(7.25)], [...p.motions.at(-3)], [...p.motions.at(-2)]])")
    np.testing.assert_allclose(between[0], 0.75 * np.array(between[1]) + 0.25 * np.array(between[2]), atol=1e-6)
    assert not np.array_equal(at_rest, picture())
    for name, message in (
        ("NotAllowedError", "The microphone was refused."),
        ("NotFoundError", "There is no microphone."),
        ("NotReadableError", "The microphone cannot be opened"),
    ):
      opened.evaluate(f"""navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException("no", "{name}")),
        byId("start").click(), new Promise((resolve) => setTimeout(resolve, 50))""")
      text = opened.evaluate("byId('message').textContent + byId('start').textContent + byId('start').disabled")
      assert text.startswith(message) and text.endswith("Startfalse")
    opened.evaluate("delete Object.getPrototypeOf(navigator).mediaDevices, byId('start').click()")
    assert "give the microphone to pages from https, localhost or a file" in opened.evaluate("byId('message').textContent")
    assert not opened.errors


@needs_browser
def test_page_draws_the_offset_corrections(tmp_path, avatar, head, model):
  """Of the place and the relation that are shown, as JAX has them."""
  net, params, queries = random_offsets(len(head.faces), ("relation", "time", "motion"))
  folded = fold_offsets(net, params, queries, statistics := model[0][1]["statistics"])
  listener.write_listener(tmp_path / "a.html", avatar, head, *model[1:], RELATIONS, offsets=folded)
  with OpenPage(tmp_path / "a.html", tmp_path / "profile") as opened:
    moved, motion = opened.evaluate("""ready.then((p) => {
      const centres = () => Array.from({ length: p.avatar.faces.length / 3 }, (_, f) => [...p.avatar.triangles.subarray(12 * f + 9, 12 * f + 12)]);
      p.motions = [new Float32Array(56).fill(0.1), new Float32Array(56).fill(0.2)], p.newest = 41, p.place = 40.5;
      byId("relation").value = "non_blood,unequal";
      p.draw(48, 48);
      const corrected = centres();
      p.avatar.pose(p.head.pose(p.motionAt(p.place)));
      return [corrected.map((x, f) => x.map((y, i) => y - centres()[f][i])), [...p.motionAt(p.place)]];
    })""")
    assert not opened.errors
  np.testing.assert_allclose(motion, 0.15, rtol=1e-6)
  standardised = (np.array(motion) - statistics["motion_mean"]) / statistics["motion_std"]
  expected = np.array(net.apply(params, queries[1], np.array(40.5, np.float32), standardised.astype(np.float32)))
  faces = np.unique(avatar.binding)
  np.testing.assert_allclose(np.array(moved)[faces], expected[faces], rtol=0, atol=5e-6)  # Metres, of 0.02; weights have steps of 0.25e-6.


@needs_browser
def test_a_head_that_hears_its_own_words_early_says_them_later(tmp_path, avatar, head):
  """With the generator that hears 5 frames ahead the sound is held for 200 ms more, and nobody's face is guessed."""
  generator, variables, socials = random_generator(ENCODER, **FULL | dict(own_lookahead=5))
  settings, weights = fold_generator(generator, variables, socials)
  path = tmp_path / "a.html"
  listener.write_listener(path, avatar, head, settings | {"speech": speech_settings(ENCODER, True)}, weights, RELATIONS)
  options = [*FAKE_MICROPHONE]
  with OpenPage(path, tmp_path / "profile", holds_clock=False, options=options) as opened:
    assert opened.evaluate("ready.then(() => [...byId('face').options].map((x) => x.value))") == ["mean"]
    opened.evaluate("""ready.then((p) => {
      p.draw = () => {};
      const made = AudioWorkletNode;
      AudioWorkletNode = function (context, name, options) { window.held = options.processorOptions.hold; return new made(context, name, options); };
      byId("start").click();
    })""")
    opened.evaluate("""ready.then((p) => new Promise((resolve) => {
      const look = () => (p.conversation?.frames ? resolve() : setTimeout(look, 50));
      look();
    }))""")
    rate, hold, frames = opened.evaluate("ready.then((p) => [p.sound.rate, p.sound.hold, p.conversation.frames])")
    assert frames and hold == round(0.1 * rate) and opened.evaluate("held") == hold + 5 * rate // 25
    assert not opened.errors


def test_own_voice_is_primed_by_the_silence_before_it(tmp_path):
  generator, variables, socials = random_generator(ENCODER, **FULL | dict(own_lookahead=6))
  settings, weights = fold_generator(generator, variables, socials)
  wavs, _ = conversation(30)
  main = """({ settings, weights, heard, own }) => {
    const conversation = new Conversation({ settings, weights }, 16000);
    return Float32Array.from(conversation.push(heard, own).flatMap((motion) => [...motion]));
  }"""
  settings |= {"speech": speech_settings(ENCODER, True)}
  inputs = dict(settings=settings, weights=weights, heard=wavs[0], own=wavs[1])
  made = run_scripts(list(listener.GENERATOR_SCRIPTS), main, tmp_path / "run", **inputs).reshape(-1, 56)
  stream = MotionStream(generator, variables, socials[0], encoder=ENCODER, level=True, lengths=(1,))
  stream.prime(np.zeros(6 * 640, np.float32))
  expected = stream.push(wavs[0], np.tile(variables["statistics"]["motion_mean"], (30, 1)), wavs[1])
  np.testing.assert_allclose(made, expected, rtol=0, atol=5e-5)


def test_what_is_not_finite_is_refused(tmp_path, avatar, head, model):
  _, settings, weights = model
  with pytest.raises(InputError, match=r"a.html: social: found a value that is not finite"):
    broken = weights | {"social": weights["social"] * np.nan}
    listener.write_listener(tmp_path / "a.html", avatar, head, settings, broken, RELATIONS)
  assert list(tmp_path.iterdir()) == []
