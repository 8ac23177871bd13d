"""A live conversation of some minutes with a trained run, in headless Chromium with a microphone that plays a file: does it drift, what
does it cost, how soon does it begin.

    python benchmarks/live_conversation.py --workdir RUN [--avatar-from RUN] [--minutes 5] [--json FILE]

Needs Chromium and a machine without other work. Voices are those of one of the run's unseen conversations: A's is the microphone's, B's is
played every 20 s. Printed are

  cold start    from the program's start to its link; from the link, in a browser that has never seen it, to a page that can be started;
                from there to the first picture of an answer, drawn in software here
  JavaScript    of a picture: posing, projecting and sorting, handing over to WebGL (the medians of 30 pictures, and their 95th
                percentiles). What WebGL then does is the graphics card's and not counted
  conversation  each minute: time from the end of a frame to the moment at which its answer is due, sound in store while B is silent and
                while it speaks, gaps; then the drift, which is the last minute's median minus the first's
  sound         where the picture is minus where the loudspeaker is, while B speaks, both by the page's own clock
                (tests/live/test_live_page.py looks from outside)
  processor     what generator and server used, in percent of one core. The picture is not drawn meanwhile: without a graphics card that
                takes all there is
"""

import argparse
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import scipy.io.wavfile

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "tests"))
sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from media.browser import BROWSER, OpenPage
from rsatalker_jax.data.audio import resample, write_wav
from rsatalker_jax.data.conversations import load_conversations
from rsatalker_jax.files import whole_file
from rsatalker_jax.runs import load_run

ROOT = pathlib.Path(__file__).resolve().parents[1]
EVERY, SPEAKS = 20, 10  # Seconds between two times that B speaks, and for which it does.

# The first picture of an answer.
FIRST = """
window.firstAnswer = null;
const show = talk.face.show.bind(talk.face);
talk.face.show = (motion) => {
  show(motion);
  if (firstAnswer === null && talk.ready && talk.clock.newest >= 0 && talk.place !== null) {
    talk.face.screen.gl.finish();
    window.firstAnswer = performance.now();
  }
};
"""

# Times of the parts of a picture, in ms.
PICTURE = """(async () => {
  const { face } = talk, { canvas } = face.screen, camera = makeCamera(face.about.view, face.view, canvas.width, canvas.height);
  const times = [[], [], []];
  for (let i = 0; i < 40; i++) {
    const motion = face.motion.map((x) => x + 0.02 * Math.sin(i)), t = [performance.now()];
    face.avatar.pose(face.head.pose(motion)), t.push(performance.now());
    const splats = makeSplats(face.avatar, camera);
    t.push(performance.now());
    face.screen.draw(splats, face.about.background), t.push(performance.now());
    if (i >= 10) times.forEach((list, k) => list.push(t[k + 1] - t[k]));
    face.screen.gl.finish();  // Which is not the page's work.
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  return times;
})()"""

# What is looked at each second, and each picture.
WATCH = """
window.seconds = [], window.offsets = [], window.pauses = [];
talk.face.show = () => {};
talk.latencies.length = talk.trips.length = 0;
let before = performance.now();
setInterval(() => { pauses.push(performance.now() - before), before = performance.now(); }, 20);
setInterval(() => {
  seconds.push([talk.latencies.splice(0), talk.stored, talk.holding ? 1 : 0, talk.underruns, talk.lost, talk.trips.splice(0)]);
}, 1000);
const find = talk.findPlace.bind(talk);
talk.findPlace = (now) => {
  const place = find(now), { heard } = talk.sound.times(now), there = talk.clock.at(heard);
  if (talk.holding && talk.lead === 0 && place !== null && there !== null) offsets.push(40 * (place - there));
  return place;
};
"""


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--avatar-from")
  parser.add_argument("--minutes", type=float, default=5)
  parser.add_argument("--json", help="file to write the numbers to")
  options = parser.parse_args()
  if BROWSER is None:
    sys.exit("needs Chromium: apt-get install chromium-headless-shell")
  with contextlib.ExitStack() as stack:
    folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    seconds = write_voices(options.workdir, folder)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; B speaks {seconds:.0f} s of every {EVERY}", flush=True)
    numbers = measure(stack, folder, options)
  if options.json:
    with whole_file(options.json) as file:
      file.write(json.dumps(numbers, indent=2).encode())


def write_voices(workdir: str, folder: pathlib.Path) -> float:
  """A's voice as the microphone's file, B's as the recording; returns the length of B's."""
  run = load_run(workdir)
  conversation = load_conversations(run.config.data, "test")[0]
  sound = resample(conversation.speech_a, 16000, 48000)
  scipy.io.wavfile.write(folder / "a.wav", 48000, np.round(32767 * sound.clip(-1, 1)).astype(np.int16))
  voice_b = conversation.speech_b[: 16000 * SPEAKS]
  write_wav(folder / "b.wav", voice_b)
  return len(voice_b) / 16000


def measure(stack: contextlib.ExitStack, folder: pathlib.Path, options: argparse.Namespace) -> dict:
  command = [sys.executable, "-m", "rsatalker_jax", "live", f"--workdir={options.workdir}", "--port=0", f"--speech_b={folder / 'b.wav'}"]
  command += [f"--avatar_from={options.avatar_from}"] if options.avatar_from else []
  began = time.monotonic()
  paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
  program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths})
  stack.callback(program.wait)
  stack.callback(program.terminate)
  for line in program.stdout:
    if line.startswith("serving on "):
      break
  else:
    sys.exit("the program has ended")
  threading.Thread(target=program.stdout.read, daemon=True).start()  # So that it never waits for a reader.
  numbers: dict = {"link_s": time.monotonic() - began}
  flags = (
      "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", f"--use-file-for-fake-audio-capture={folder / 'a.wav'}",
      "--autoplay-policy=no-user-gesture-required",
  )  # fmt: skip
  page = stack.enter_context(OpenPage("about:blank", folder / "profile", holds_clock=False, options=flags))
  page.resize(640, 480)
  page.open(line.split()[2])
  page.evaluate("ready.then(() => null)")
  numbers["page_s"] = page.evaluate("performance.now()") / 1000
  page.evaluate(FIRST)
  pressed = page.evaluate("performance.now()")
  page.key("s")
  wait(page, "firstAnswer !== null")
  numbers["listening_s"] = (page.evaluate("firstAnswer") - pressed) / 1000
  numbers["cold_start_s"] = numbers["page_s"] + numbers["listening_s"]
  print(f"cold start: link {numbers['link_s']:.1f} s after the program; page {numbers['page_s']:.2f} s after the link, first answer drawn "
        f"{numbers['listening_s']:.2f} s after that: {numbers['cold_start_s']:.2f} s", flush=True)  # fmt: skip

  parts = np.array(page.evaluate(PICTURE))
  gaussians = page.evaluate("talk.face.avatar.length")
  numbers["picture_ms"] = {name: np.percentile(x, [50, 95]).tolist() for name, x in zip(("pose", "project and sort", "to WebGL"), parts)}
  numbers["picture_ms"]["all"] = np.percentile(parts.sum(axis=0), [50, 95]).tolist()
  shown = ", ".join(f"{name} {low:.1f} (p95 {high:.1f})" for name, (low, high) in numbers["picture_ms"].items())
  print(f"JavaScript of a picture of {gaussians} Gaussians, ms: {shown}", flush=True)

  page.evaluate(WATCH)
  time.sleep(3)
  page.evaluate("seconds.length = offsets.length = pauses.length = 0")
  processes = find_processes(program.pid)
  before, start = {pid: used(pid) for pid in processes}, time.monotonic()
  spoke = start - EVERY + 2
  while (now := time.monotonic()) < start + 60 * options.minutes:
    if now >= spoke + EVERY:
      spoke = now
      page.key("p")
    time.sleep(0.5)
  lasted = time.monotonic() - start
  spent = {pid: 100 * (used(pid) - before[pid]) / lasted for pid in processes}
  shares = {name: sum(spent[pid] for pid in processes if processes[pid] == name) for name in ("server", "generator")}
  numbers["processor_percent"] = shares | {"together": sum(shares.values())}
  rows = page.evaluate("seconds")
  numbers |= tell_conversation(rows, page.evaluate("offsets"), page.evaluate("pauses"))
  print("processor, % of a core: " + ", ".join(f"{name} {share:.1f}" for name, share in numbers["processor_percent"].items()))
  said, goes_on = page.evaluate("[byId('trouble').innerText, talk.ready]")
  print(f"page: {said or 'no trouble'}{'' if goes_on else '; the conversation has ended'}; errors: {page.errors or 'none'}")
  return numbers


def tell_conversation(rows: list, offsets: list, pauses: list) -> dict:
  """Prints the table of minutes; returns its numbers."""
  minutes = []
  print("minute: due ms p50, p99 | there and back ms p50, p99 | frames in store, B silent, B speaks | gaps")
  for start in range(0, len(rows) - 29, 60):
    part = rows[start : start + 60]
    due, trips = (np.concatenate([row[i] for row in part]) for i in (0, 5))
    stored = [np.mean([row[1] for row in part if row[2] == kind] or [np.nan]) for kind in (0, 1)]
    gaps = part[-1][3] - (rows[start - 1][3] if start else rows[0][3])
    minutes.append({
        "due_ms": np.percentile(due, [50, 99]).tolist(), "trip_ms": np.percentile(trips, [50, 99]).tolist(), "stored": stored, "gaps": gaps,
    })  # fmt: skip
    print(f"{start // 60 + 1}: {minutes[-1]['due_ms'][0]:.0f}, {minutes[-1]['due_ms'][1]:.0f} | {minutes[-1]['trip_ms'][0]:.1f}, "
          f"{minutes[-1]['trip_ms'][1]:.1f} | {stored[0]:.2f}, {stored[1]:.2f} | {gaps}")  # fmt: skip
  silent = np.concatenate([row[0] for row in rows if not row[2]] or [np.zeros(1)])
  drift = minutes[-1]["due_ms"][0] - minutes[0]["due_ms"][0]
  low, high = np.percentile(silent, [50, 99])
  offsets = np.array(offsets or [np.nan])
  within = 100 * np.mean(np.abs(offsets) <= 20)
  busy = np.percentile(pauses, 90)
  lost = rows[-1][4] - rows[0][4]
  print(f"B silent: due {low:.0f} ms, p99 {high:.0f}; drift {drift:+.1f} ms; lost frames {lost}; a timer of 20 ms takes {busy:.0f} (p90)")
  print(f"picture minus sound, ms: median {np.median(offsets):.1f}, p1 {np.percentile(offsets, 1):.1f}, p99 {np.percentile(offsets, 99):.1f}; "
        f"within 20: {within:.1f} % of {len(offsets)} pictures")  # fmt: skip
  return {"minutes": minutes, "silent_due_ms": [low, high], "drift_ms": drift, "within_20_ms_percent": within, "timer_ms": busy}


def wait(page: OpenPage, expression: str) -> None:
  while not page.evaluate(expression):
    time.sleep(0.02)


def find_processes(pid: int) -> dict[int, str]:
  """The program's own processes: the generator's is the spawned one."""
  found = {pid: "server"}
  for entry in pathlib.Path("/proc").iterdir():
    if entry.name.isdecimal():
      with contextlib.suppress(OSError):
        parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        if parent == pid and b"spawn_main" in (entry / "cmdline").read_bytes():
          found[int(entry.name)] = "generator"
  return found


def used(pid: int) -> float:
  """Seconds of processor time of a process."""
  fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
  return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
  main()
