"""The page's sound outside of any page: what the loudspeaker does when clocks differ, frames are late and A interrupts; what the
microphone makes of the sound card's samples; where in the sound a motion belongs."""

import numpy as np
import pytest

from media.scripts import run_scripts

LIVE = "../live/"
HOLD, VOICED, CUT = 1, 2, 4

# The scope of a worklet, whose time passes when a test says so.
SCOPE = """
"use strict";
let currentTime = 0, sampleRate = 48000;
const processors = {};
const registerProcessor = (name, kind) => { processors[name] = kind; };
class AudioWorkletProcessor {
  constructor() {
    this.told = [];
    this.port = { postMessage: (message) => this.told.push(structuredClone(message)) };
  }
}
"""

# Plays frames that arrive at `times` (seconds) through a sound card of `rate`. Returns all samples, then of each report time, stored,
# underruns, starved and position.
PLAY = """async ({ rate, times, flags, sounds, numbers, seconds }) => {
  sampleRate = rate;
  const speaker = new processors.loudspeaker({ processorOptions: { held: 2 } }), out = [], block = 128;
  let next = 0;
  for (let i = 0; i * block < seconds * rate; i++) {
    currentTime = i * block / rate;
    for (; next < times.length && times[next] <= currentTime; next++) {
      const sound = Int16Array.from(sounds.subarray(640 * next, 640 * next + 640));
      speaker.port.onmessage({ data: { number: numbers[next], flags: flags[next], sound } });
    }
    const channel = new Float32Array(block);
    speaker.process([], [[channel]]);
    out.push(...channel);
  }
  const reports = speaker.told.flatMap((x) => [x.time, x.stored, x.underruns, x.starved, x.position ?? -1]);
  return Float32Array.from([out.length, ...out, ...reports]);
}"""


def run(tmp_path, script, main, **inputs):
  tmp_path.mkdir(exist_ok=True)
  (tmp_path / "scope.js").write_text(SCOPE)
  names = [str(tmp_path / "scope.js"), LIVE + "resampler.js", LIVE + script]
  return run_scripts(names, main, tmp_path / "run", **inputs).astype(np.float64)


def play(tmp_path, times, flags, sounds, *, rate=48000, numbers=None, seconds=None):
  numbers = np.arange(len(times)) if numbers is None else numbers
  seconds = times[-1] + 0.04 if seconds is None else seconds
  given = dict(times=np.float32(times), flags=np.float32(flags), sounds=np.float32(sounds), numbers=np.float32(numbers))
  made = run(tmp_path, "loudspeaker.js", PLAY, rate=rate, seconds=float(seconds), **given)
  count = int(made[0])
  return made[1 : 1 + count], made[1 + count :].reshape(-1, 5).T


def phrases(frames, period=100, speech=60):
  """Flags of a voice that speaks `speech` of every `period` frames, with the silence around it in which the page gathers sound."""
  place = np.arange(frames) % period
  said = (place >= period - speech - 8) & (place < period)
  voiced = (place >= period - speech - 2) & (place < period - 2)
  return HOLD * said + VOICED * voiced


@pytest.mark.parametrize("ppm", [-200, 200])
def test_clocks_that_differ_do_not_drift_apart(tmp_path, ppm):
  """Five minutes of a sound card whose clock goes 200 ppm faster or slower than that of the frames: 60 ms in all, 1.5 frames."""
  rng, frames = np.random.default_rng(0), 300 * 25
  late = rng.uniform(0, 0.006, frames)  # Of each frame on its own, by network and scheduler.
  flags = phrases(frames)
  sounds = np.zeros((frames, 640))
  _, (times, stored, underruns, _, position) = play(
      tmp_path, (np.arange(frames) + 1) * 0.04 * (1 + 1e-6 * ppm) + late, flags, sounds.reshape(-1), rate=8000
  )
  frame = np.clip((position / 640).astype(int), 0, frames - 1)
  silent = flags[frame] == 0
  speaks = (flags[frame] & VOICED > 0) & (np.roll(flags, 5)[frame] & VOICED > 0)
  minutes = [(times > 60 * minute) & (times <= 60 * (minute + 1)) for minute in range(5)]
  held = np.array([[stored[minute & kind].mean() for kind in (silent, speaks)] for minute in minutes])
  assert underruns[-1] == 0
  assert np.ptp(held, axis=0).max() < 0.25  # No minute is later than another.
  assert (held[:, 0] < 1.2).all() and ((held[:, 1] > 2) & (held[:, 1] < 3)).all()
  assert stored.max() < 4.5


def test_what_a_delay_has_added_goes_in_silence(tmp_path):
  """Frames stand still for 0.4 s in the middle of speech and come all at once: a gap is heard, and after the phrase all is as before."""
  frames = 500
  times = (np.arange(frames) + 1) * 0.04
  stop = (times > 7.0) & (times < 7.4)
  times[stop] = 7.4
  flags = phrases(frames)
  sounds = 8000 * np.sin(2 * np.pi * 400 * np.arange(frames * 640) / 16000)
  sounds *= np.repeat(flags & VOICED > 0, 640)
  _, (when, stored, underruns, starved, position) = play(tmp_path, times, flags, sounds, rate=16000)
  assert flags[int(7.2 * 25)] & VOICED and underruns[-1] == 1 and starved.any()
  assert stored[(when > 7.42) & (when < 7.6)].min() > 9  # What came at once is played in full …
  assert stored[(when > 9) & (when < 9.4)].max() < 2  # … and in the silence after the phrase it is made up for.
  steps = np.diff(position) / np.diff(when) / 16000
  voiced = (flags[np.clip((position / 640).astype(int), 0, frames - 1)] & VOICED > 0)[1:] & (starved[1:] == 0) & (starved[:-1] == 0)
  inner = voiced & np.roll(voiced, 1) & np.roll(voiced, -1)
  np.testing.assert_allclose(steps[inner], 1, atol=1e-3)  # Speech is never faster or slower.
  assert steps[~voiced].max() > 1.5


def test_a_gap_in_silence_is_none(tmp_path):
  times = (np.arange(50) + 1) * 0.04
  times[20:26] = times[26]
  _, (_, stored, underruns, starved, _) = play(tmp_path, times, np.zeros(50), np.zeros(50 * 640), rate=16000)
  assert underruns[-1] == 0 and starved.any() and stored[-1] < 2


def test_after_a_long_pause_what_was_missed_is_not_played(tmp_path):
  times = (np.arange(120) + 1) * 0.04
  times[20:60] = times[60]  # 1.6 s at once, of speech.
  flags = np.where(np.arange(120) < 90, HOLD | VOICED, 0)
  _, (when, stored, *_) = play(tmp_path, times, flags, np.zeros(120 * 640), rate=16000)
  assert 10 < stored[(when > 2.5) & (when < 3)].max() < 20  # Not the 40 that came.
  assert stored[when > 4.7].max() < 2


@pytest.mark.parametrize("rate", [48000, 44100, 16000])
def test_speech_sounds_as_it_was_said(tmp_path, rate):
  """At the sound card's rate, later than it came by what is held back, and without a gap between frames."""
  frames = 60
  flags = np.where(np.arange(frames) < 4, HOLD, HOLD | VOICED)
  wav = 12000 * np.sin(2 * np.pi * 440 * np.arange(frames * 640) / 16000) + 6000 * np.sin(2 * np.pi * 3100 * np.arange(frames * 640) / 16000)
  played, (when, _, underruns, _, position) = play(tmp_path, (np.arange(frames) + 1) * 0.04, flags, np.round(wav), rate=rate)
  begin, end = int(0.8 * rate), int(2.2 * rate)
  # Where each sample lies in B's sound: the reports say it of the sample after the block.
  times = np.arange(begin, end) / rate
  places = np.interp(times, when, position) / 16000
  expected = (12000 * np.sin(2 * np.pi * 440 * places) + 6000 * np.sin(2 * np.pi * 3100 * places)) / 32768
  np.testing.assert_allclose(played[begin:end], expected, atol=0.01)
  assert underruns[-1] == 0
  held = 640 * 25 * (times[::1000] - 0) - np.interp(times[::1000], when, position)
  assert (held > 1.5 * 640).all() and (held < 4 * 640).all()


def test_what_was_not_played_yet_is_cut(tmp_path):
  frames = 40
  flags = np.where(np.arange(frames) < 8, HOLD, HOLD | VOICED)  # In silence something is gathered that can be cut.
  flags[20], flags[21:] = CUT, 0
  place = np.arange(frames * 640)
  wav = np.where((place >= 8 * 640) & (place < 20 * 640), 8000 * np.sin(2 * np.pi * 500 * place / 16000), 0)
  times = (np.arange(frames) + 1) * 0.04
  played, (when, stored, *_) = play(tmp_path, times, flags, wav, rate=16000)
  cut = int(times[20] * 16000)
  assert stored.max() > 2.5
  assert np.abs(played[cut - 640 : cut]).max() > 0.2
  assert not np.abs(played[cut + 128 + 80 + 17 :]).max() > 1e-3  # A block, 5 ms of fading and the filter's half.
  assert np.abs(np.diff(played)).max() < 0.12  # It fades.
  assert stored[-1] < 2  # And no silence is held back.
  # What was cut is silence, which is shortened at once.
  assert stored[(when > times[20] + 0.06) & (when < times[20] + 0.11)].max() < 2


def test_another_conversation_begins_with_nothing(tmp_path):
  main = """async () => {
    sampleRate = 16000;
    const speaker = new processors.loudspeaker({ processorOptions: { held: 2 } });
    const play = () => {
      const channel = new Float32Array(1280);
      speaker.process([], [[channel]]);
      return Math.max(...channel);
    };
    const tell = (number, flags, level) => speaker.port.onmessage({ data: { number, flags, sound: new Int16Array(640).fill(level) } });
    const before = play();
    tell(0, 3, 9000), tell(1, 3, 9000), tell(2, 3, 9000);
    const loud = play();
    speaker.port.onmessage({ data: null });
    const after = play();
    tell(7, 3, 0), tell(8, 3, 0), tell(9, 3, 0);
    const again = play();
    return Float32Array.from([before, loud, after, again, speaker.position, speaker.underruns]);
  }"""
  before, loud, after, again, position, underruns = run(tmp_path, "loudspeaker.js", main)
  assert before == after == 0 and loud > 0.2 and abs(again) < 1e-6
  assert position >= 7 * 640 and underruns == 0


HEAR = """async ({ rate, wav, gone }) => {
  sampleRate = rate;
  const microphone = new processors.microphone();
  for (let i = 0; i + 128 <= wav.length; i += 128) {
    currentTime = i / rate;
    microphone.process([i < gone * rate ? [wav.subarray(i, i + 128)] : []]);
  }
  return Float32Array.from(microphone.told.flatMap(({ sound, level, time }) => [level, time, ...sound]));
}"""


def hear(tmp_path, wav, rate, gone=1e9):
  frames = run(tmp_path, "microphone.js", HEAR, rate=rate, wav=wav, gone=gone).reshape(-1, 642)
  return frames[:, 0], frames[:, 1], frames[:, 2:]


@pytest.mark.parametrize("rate", [48000, 44100, 16000, 8000])
def test_the_microphone_gives_frames_of_16_khz(tmp_path, rate):
  wav = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(2 * rate) / rate)
  levels, times, frames = hear(tmp_path, wav, rate)
  assert len(frames) == 49  # The filter waits for a little more than is there.
  expected = 16384 * np.sin(2 * np.pi * 1000 * np.arange(49 * 640) / 16000)
  np.testing.assert_allclose(frames.reshape(-1)[640:], expected[640:], atol=60)
  np.testing.assert_allclose(levels[1:], 0.5 / np.sqrt(2), rtol=0.01)
  assert (np.diff(times) > 0.03).all() and np.abs(times - 0.04 * np.arange(1, 50)).max() < 0.02  # When each was over.


def test_what_16_khz_cannot_hold_is_left_out(tmp_path):
  """A tone of 11 kHz would come back as one of 5; and one far above full scale is clipped, not wrapped around."""
  levels, *_ = hear(tmp_path, 0.5 * np.sin(2 * np.pi * 11000 * np.arange(24000) / 48000), 48000)
  assert levels[1:].max() < 0.005
  *_, frames = hear(tmp_path / "loud", 3 * np.sin(2 * np.pi * 300 * np.arange(24000) / 48000), 48000)
  assert frames.max() == 32767 and frames.min() == -32767
  assert np.abs(np.diff(frames.reshape(-1)[640:])).max() < 20000


def test_a_microphone_that_is_gone_is_silent(tmp_path):
  levels, _, frames = hear(tmp_path, np.full(24000, 0.5), 48000, gone=0.25)
  assert len(frames) == 12 and levels[4] > 0.4 and not frames[7:].any()


CLOCK = """async () => {
  const clock = new SoundClock(), out = [clock.at(1) === null ? 1 : 0];
  clock.report({ position: null, time: 1, starved: false });
  out.push(clock.at(1) === null ? 1 : 0, clock.motionAt(3) === null ? 1 : 0);
  clock.report({ position: 640, time: 10, starved: false });
  clock.report({ position: 1280, time: 10.04, starved: false });
  clock.report({ position: 1600, time: 10.06, starved: true });
  out.push(clock.at(9), clock.at(10), clock.at(10.02), clock.at(10.04), clock.at(10.05), clock.at(10.5));
  clock.report({ position: 1920, time: 10.08, starved: false });
  out.push(clock.at(10.09), clock.at(11));
  for (let n = 0; n < 150; n++) clock.add(n, Float32Array.of(n, -n));
  for (const frames of [100, 100.5, 101.25, 149.5, 152, 20]) out.push(...(clock.motionAt(frames) ?? [-1, -1]));
  out.push(clock.motions.size);
  for (let i = 0; i < 300; i++) clock.report({ position: i, time: 20 + i, starved: false });
  out.push(clock.reports.length);
  clock.restart();
  out.push(clock.at(300) === null ? 1 : 0, clock.motionAt(100) === null ? 1 : 0, clock.newest);
  return Float32Array.from(out);
}"""


def test_the_clock_of_the_sound(tmp_path):
  """Frames at a time; it goes on for 30 ms after the last report, and not where the loudspeaker has nothing. A frame is what its
  middle shows."""
  found = list(run_scripts([LIVE + "clock.js"], CLOCK, tmp_path / "run").astype(np.float64))
  assert found[:3] == [1, 1, 1]
  np.testing.assert_allclose(found[3:11], [1, 1, 1.5, 2, 2.25, 2.5, 3.25, 3.75], atol=1e-4)
  motions = np.array(found[11:23]).reshape(6, 2)
  np.testing.assert_allclose(motions[:, 0], [99.5, 100, 100.75, 149, 149, -1], atol=1e-4)
  np.testing.assert_allclose(motions[:5, 1], -motions[:5, 0])
  assert found[23:] == [100, 100, 1, 1, -1]
