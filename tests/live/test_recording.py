"""A recorded conversation holds what was heard, said and shown, and the generator makes it again in every bit; what is damaged is one line."""

import asyncio
import contextlib
import dataclasses
import json
import shutil

import av
import numpy as np
import pytest

from live import probe
from live.test_live_engine import loaded, make_run
from live.talks import QUIET, talk
from rsatalker_jax.commands import generate
from rsatalker_jax.data.audio import read_wav, write_wav
from rsatalker_jax.data.tracks import read_motion
from rsatalker_jax.errors import InputError
from rsatalker_jax.live import engine, recording, server
from rsatalker_jax.live.protocol import CUT
from rsatalker_jax.live.recording import RecordingFolder, read_recording, reproduce
from rsatalker_jax.live.server import Allowance, LiveServer
from rsatalker_jax.live.worker import Worker
from served import serving_in_thread

SAYS = (0.3 * np.sin(0.1 * np.arange(640 * 20)) * np.repeat(np.linspace(0.1, 1, 20), 640)).astype(np.float32)
ABOUT = {"workdir": "runs/a", "avatar_from": None}


@pytest.fixture
def serve(monkeypatch, tmp_path):
  """Serves an engine, with a folder for recordings; gives the port."""
  monkeypatch.setattr(server, "Allowance", lambda *_: Allowance(1e6, 10**6))

  @contextlib.contextmanager
  def start(make_engine, *arguments, **more):
    worker = Worker(make_engine, *arguments, own_process=False)
    records = RecordingFolder(tmp_path / "kept", {"stages": "", "person": "", **worker.about, **ABOUT, **more})
    try:
      options = dict(recordings={"says": SAYS}, records=records, conversations=worker.about["places"])
      with serving_in_thread(lambda origins: LiveServer(worker, "a-token", origins, **options).make_app()) as port:
        yield port
    finally:
      worker.stop()

  return start


@pytest.fixture
def probed(serve):
  """The same of the probe, which says in the motion what it was given."""
  return lambda ahead=0: serve(probe.ProbeEngine, ahead, 2, {"basis": "arkit", "places": 2, "generator": "0"})


def kept(tmp_path):
  return sorted(path for path in (tmp_path / "kept").iterdir())


async def hear_until(a, kind):
  """Waits for a line of the server's; frames go on."""
  for _ in range(2000):
    if any(message["type"] == kind for message in a.told):
      break
    await a.ask()
    await asyncio.sleep(0.01)
  return [message for message in a.told if message["type"] == kind][-1]


def loud(rng, level=3000):
  return np.round(level * rng.normal(size=640)).clip(-32768, 32767).astype(np.int16)


async def converse(port):
  """A conversation with all that may happen in one: what the page sent and was answered, frame by frame, and where it was recorded."""
  rng, heard, answers = np.random.default_rng(0), [], []
  seen = rng.normal(size=56).astype(np.float32)
  async with talk(port) as a:

    async def hear(count, motion=None):  # All at once, so that some wait and some are on their way.
      for _ in range(count):
        heard.append(loud(rng, rng.uniform(100, 1000)))
        await a.hear(heard[-1], motion)

    await hear(5)
    await a.tell("play", recording=0)
    await hear(9)
    await a.tell("relation", relation="non_blood,equal")
    await a.tell("record", on=True)
    await hear(6)
    while len(answers) < len(heard):
      answers.append(await a.answer())
    await a.tell("relation", relation="blood,unknown")
    await hear(7, seen)
    await a.tell("stop")  # What it heard ahead is not said.
    await a.tell("relation", relation="non_blood,unequal")
    await hear(8)
    while len(answers) < len(heard):
      answers.append(await a.answer())
    await a.tell("record", on=False)
    told = await hear_until(a, "recorded")
  return heard, answers, told["message"], a.told


@pytest.mark.parametrize("ahead, conversations", [(0, 3), (2, 1)])
def test_a_recording_is_made_again_in_every_bit(monkeypatch, tmp_path, serve, ahead, conversations):
  run = make_run(tmp_path, own_lookahead=ahead)
  loaded(monkeypatch, a=run)
  with serve(engine.load_engine, "a", None, None, conversations, None) as port:
    heard, answers, message, told = asyncio.run(converse(port))
  (folder,) = kept(tmp_path)
  assert message.startswith(f"Kept as {folder.name}: 0.8 s, stopped.")
  assert {"type": "recording", "name": folder.name} in told
  found = read_recording(folder)
  numbers = range(14, 35)
  assert found.about["frames"] == 21 and found.about["ended"] == "stopped" and found.about["frames_ahead"] == ahead
  np.testing.assert_array_equal(found.motion_b, [answers[n][2] for n in numbers])
  np.testing.assert_array_equal(found.speech_a, np.concatenate([heard[n] for n in numbers]) / 32768)
  np.testing.assert_array_equal(found.speech_b, np.concatenate([answers[n][3] for n in numbers]) / 32768)
  assert any(answers[n][1] & CUT for n in numbers) and np.abs(found.speech_b).max() > 0.05
  # What was cut has been heard, and not said.
  after = 640 * next(i for i, n in enumerate(numbers) if answers[n][1] & CUT)
  assert not found.speech_b[after:].any() and found.heard_b[after : after + 640 * ahead].any() == (ahead > 0)
  neutral = run.buffers["generator"]["motion_mean"]
  assert (found.motion_a[6:13] != neutral).all()
  if ahead:  # Without, A's motion is invented (partner.py).
    assert (found.motion_a[:6] == neutral).all()
    assert (np.diff(np.abs(found.motion_a[12:] - neutral), axis=0) < 0).all()  # Back to it by and by (seen.py).
  else:
    assert (found.motion_a != neutral).any(axis=1).all()
  relations = found.relations.tolist()
  assert relations[0] == [0, 1] and relations[-1] == [0, 0] and [1, -1] in relations

  np.testing.assert_array_equal(reproduce(run, found, "a"), found.motion_b)
  differ = lambda **changes: (reproduce(run, dataclasses.replace(found, **changes), "a") != found.motion_b).any(axis=1)
  change = int(np.argmax((found.relations != found.relations[0]).any(axis=1)))
  constant = differ(relations=np.tile(found.relations[0], (21, 1)))
  assert not constant[:change].any() and constant[change:].all()
  assert differ(relations=np.concatenate([found.relations[:1], found.relations[:-1]])).any()  # A frame late.
  for name in ("speech_a", "heard_b", "motion_a"):
    late = np.roll(getattr(found, name), 1 if name == "motion_a" else 640, axis=0)
    assert differ(**{name: late}).any(), name

  other = dataclasses.replace(run, params=run.params | {"social": {**run.params["social"], "more": np.zeros(1)}})
  with pytest.raises(InputError, match="^b: generator: found another than made the recording, expected that of runs/a at that time$"):
    reproduce(other, found, "b")

  # The command, but for the drawing.
  (tmp_path / "elsewhere").mkdir()
  out, motion = tmp_path / "elsewhere" / "film.mp4", tmp_path / "elsewhere" / "b.npz"
  drawn = []

  def draw(run, avatar, motion, body, view, relations=None):
    drawn.append((motion, relations))
    return (np.full((48, 48, 3), i, np.uint8) for i in range(len(motion)))

  monkeypatch.setattr(generate, "_faces", draw)
  monkeypatch.setattr(generate.views, "front_view", lambda *_: (None, None))
  generate.film_recording(workdir="a", recording=str(folder), out=str(out), save_motion=str(motion), size=48)
  np.testing.assert_array_equal(read_motion(motion), found.motion_b)
  np.testing.assert_array_equal(drawn[0][0], found.motion_a)
  np.testing.assert_array_equal(drawn[1][0], found.motion_b)
  np.testing.assert_array_equal(drawn[1][1], found.relations)
  with av.open(str(out)) as container:
    assert container.streams.audio and container.streams.video[0].frames == 21


def test_the_command_says_whether_it_is_the_same(monkeypatch, tmp_path, capsys):
  folder = write_recording(tmp_path)
  made = read_recording(folder).motion_b.copy()
  monkeypatch.setattr(recording, "reproduce", lambda *_: made)
  monkeypatch.setattr(generate, "load_shown", lambda *_: (make_run(tmp_path),) * 2)
  monkeypatch.setattr(generate, "_faces", lambda run, avatar, motion, *_: (np.zeros((48, 48, 3), np.uint8) for _ in motion))
  monkeypatch.setattr(generate.views, "front_view", lambda *_: (None, None))
  film = lambda: generate.film_recording(workdir="a", recording=str(folder), out=str(tmp_path / "film.mp4"), seconds=0.2)
  film()
  assert "is the recorded one in every bit: 10 frames" in capsys.readouterr().out
  made[4, 7] += 0.25
  film()
  assert "differs from the recorded one in 1 of 10 frames, from 0.16 s on, by at most 0.25" in capsys.readouterr().out


def write_recording(tmp_path, frames=10, **about):
  """One without any conversation."""
  known = dict(basis="flame2020", places=1, generator="0", frames_ahead=2, stages="", person="", **ABOUT) | about
  made = recording.Recording(tmp_path, 5, np.arange(1280, dtype=np.int16), known)
  made.relate(5, np.array([1, 1]))
  made.relate(9, np.array([0, -1]))
  rng = np.random.default_rng(0)
  for number in range(3, 5 + frames):
    voices = {name: loud(rng) for name in ("speech_a", "speech_b", "heard_b")}
    assert made.add(number, **voices, motion_a=rng.normal(size=56), motion_b=rng.normal(size=56))
  assert made.finish("stopped")
  return made.place


def test_what_is_written_is_read(tmp_path):
  folder = write_recording(tmp_path)
  found = read_recording(folder)
  rng = np.random.default_rng(0)
  frames = [([loud(rng) for _ in range(3)], [np.float32(rng.normal(size=56)) for _ in range(2)]) for _ in range(12)][2:]
  for i, name in enumerate(("speech_a", "speech_b", "heard_b")):
    wav = np.concatenate([voices[i] for voices, _ in frames]) / 32768
    first = np.arange(1280) / 32768 if name == "heard_b" else []
    np.testing.assert_array_equal(getattr(found, name), np.concatenate([first, wav]))
  np.testing.assert_array_equal(found.motion_a, [motions[0] for _, motions in frames])
  np.testing.assert_array_equal(found.motion_b, [motions[1] for _, motions in frames])
  assert found.relations.tolist() == [[1, 1]] * 4 + [[0, -1]] * 6
  assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_what_the_generator_was_given_is_what_is_kept(tmp_path, probed):
  """Of the probe, which does nothing but say it; a recording begins with nothing remembered."""

  async def main(port):
    rng = np.random.default_rng(0)
    async with talk(port) as a, talk(port) as other:
      await other.ask(), await other.ask()
      for _ in range(4):
        await a.ask()
      await a.tell("record", on=True)
      await a.tell("record", on=True)  # Once is enough.
      answers = [await a.ask(loud(rng)) for _ in range(6)]
      assert [motion[probe.FRAME] for _, _, motion, _ in answers] == list(range(6))
      assert (await other.ask())[2][probe.FRAME] == 2
      await a.tell("record", on=False)
      await a.tell("record", on=False)
      await hear_until(a, "recorded")
      assert len([x for x in a.told if x["type"] in ("recording", "recorded")]) == 2
      assert (await a.ask())[2][probe.FRAME] >= 6  # The conversation goes on.

  with probed(ahead=3) as port:
    asyncio.run(main(port))
  (folder,) = kept(tmp_path)
  found = read_recording(folder)
  assert found.about["frames"] == 6 and (found.motion_a == 0.25).all()
  heard = [probe.loudness(part) for part in found.speech_a.reshape(-1, 640)]
  np.testing.assert_allclose(found.motion_b[:, probe.JAW], np.minimum(probe.GAIN * np.array(heard), 0.5), rtol=1e-5)


@pytest.mark.parametrize("way", ["close", "drop", "garbage", "program"])
def test_a_conversation_that_ends_ends_its_recording_which_is_kept(tmp_path, probed, capsys, way):
  async def main(port):
    async with talk(port) as a:
      await a.tell("record", on=True)
      for _ in range(6):
        await a.ask()
      if way == "drop":
        a.socket._response.connection.transport.abort()
      elif way == "garbage":
        await a.socket.send_bytes(b"")
        assert "0 bytes" in (await a.end())[0]
      elif way == "program":
        await asyncio.get_running_loop().run_in_executor(None, stack.close)
    for _ in range(1000):
      if all(path.name[0] == "2" for path in kept(tmp_path)):
        break
      await asyncio.sleep(0.02)

  with contextlib.ExitStack() as stack:
    asyncio.run(main(stack.enter_context(probed())))
  (folder,) = kept(tmp_path)
  why = {"close": "the page left", "drop": "the connection was lost", "garbage": "frame: found 0 bytes, expected 1284 or 1508"}
  assert read_recording(folder).about["ended"] == why.get(way, "the program has ended")
  assert f"recorded {folder} (0.2 s, " in capsys.readouterr().out


def test_nothing_is_written_unless_asked_for(tmp_path, probed):
  async def main(port):
    async with talk(port) as a:
      for _ in range(8):
        await a.ask()
      await a.tell("record", on=True)
      await a.ask()
      await a.tell("record", on=False)
      assert (await hear_until(a, "recorded"))["message"] == "Nothing was kept: 0.0 s, stopped, is too short."

  with probed() as port:
    asyncio.run(main(port))
  assert kept(tmp_path) == []


def test_without_a_folder_it_is_refused():
  async def main(port):
    async with talk(port) as a:
      await a.tell("record", on=True)
      await a.ask()
      assert a.told[-1]["type"] == "trouble" and "--recordings=DIR where the program is started" in a.told[-1]["message"]

  worker = Worker(probe.ProbeEngine, 0, 2, own_process=False)
  try:
    with serving_in_thread(lambda origins: LiveServer(worker, "a-token", origins).make_app()) as port:
      asyncio.run(main(port))
  finally:
    worker.stop()


def test_the_longest_and_a_full_disk_end_it(monkeypatch, tmp_path, probed):
  async def main(port):
    async with talk(port) as a:
      await a.tell("record", on=True)
      for _ in range(9):
        await a.ask()
      assert "0.3 s, the longest that one may be" in (await hear_until(a, "recorded"))["message"]
      monkeypatch.setattr(recording, "_LEAST_FREE", 1 << 60)
      await a.tell("record", on=True)
      await a.ask()
      assert a.told[-1]["type"] == "trouble" and "MB on the disk" in a.told[-1]["message"]
      monkeypatch.undo()
      monkeypatch.setattr(recording, "write_motion", fail)
      a.told.clear()
      await a.tell("record", on=True)
      for _ in range(6):
        await a.ask()
      await a.tell("record", on=False)
      assert "No space left" in (await hear_until(a, "recorded"))["message"]

  def fail(*_, **__):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(recording, "MOST_SECONDS", 8 / 25)
  with probed() as port:
    asyncio.run(main(port))
  assert [path.name[0] for path in kept(tmp_path)] == [".", "2"]  # What there was of the third stays, under no recording's name.
  found = RecordingFolder(tmp_path / "kept", dict(basis="arkit", places=2, generator="0", frames_ahead=0, stages="", person="", **ABOUT))
  assert found.unfinished == [kept(tmp_path)[0].name]


def damaged(change):
  """A recording to which something was done."""

  def make(tmp_path):
    folder = write_recording(tmp_path)
    change(folder)
    return folder

  return make


def rewrite(**values):
  def change(folder):
    about = json.loads((folder / "recording.json").read_text())
    (folder / "recording.json").write_text(json.dumps(about | values))

  return damaged(change)


def replace(name, write):
  """Another file, and its digest."""

  def change(folder):
    write(folder / name)
    about = json.loads((folder / "recording.json").read_text())
    about["files"][name] = recording._digest((folder / name).read_bytes())
    (folder / "recording.json").write_text(json.dumps(about))

  return damaged(change)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda folder: folder / "none", "recording.json: found No such file or directory, expected a recording of"),
        (lambda folder: folder, "recording.json: found No such file"),
        (damaged(lambda folder: (folder / "recording.json").write_text("{")), "recording.json: found no JSON"),
        (damaged(lambda folder: (folder / "recording.json").write_text("[]")), "recording.json: version: found list, expected 1"),
        (rewrite(version=2), "version: found 2, expected 1"),
        (rewrite(frames=11), "speech_a.wav: length: found 6400, expected 7040 samples"),
        (rewrite(frames=3), "frames: found 3, expected a whole number, at least 5"),
        (rewrite(frames_ahead=1), "heard_b.wav: length: found 7680, expected 7040"),
        (rewrite(places=0), "places: found 0"),
        (rewrite(basis="klingon"), "basis: found 'klingon', expected flame2020 | flame2023 | arkit"),
        (rewrite(basis="arkit"), "motion_a.npz: motion: found 10 frames of flame2020, expected 10 of arkit"),
        (rewrite(generator=None), "generator: found None"),
        (rewrite(relations=[]), "relations: found []"),
        (rewrite(relations=[[1, "blood,equal"]]), "relations: found [[1, 'blood,equal']], expected [[0, RELATION]"),
        (rewrite(relations=[[0, "blood,equal"], [10, "unknown"]]), "relations: found"),
        (rewrite(relations=[[0, "friends"]]), "relations: found 'friends'"),
        (rewrite(files={}), "speech_a.wav: SHA-256: found another content"),
        (damaged(lambda folder: (folder / "heard_b.wav").unlink()), "heard_b.wav: found No such file"),
        (damaged(lambda folder: write_wav(folder / "speech_b.wav", QUIET)), "speech_b.wav: SHA-256"),
        (replace("speech_a.wav", lambda path: write_wav(path, np.zeros(6399, np.int16))), "speech_a.wav: length: found 6399"),
        (replace("motion_b.npz", lambda path: path.write_bytes(b"PK")), "motion_b.npz: found unreadable"),
    ],
)
def test_damage_is_one_line(tmp_path, make, message):
  folder = make(tmp_path)
  with pytest.raises(InputError) as caught:
    read_recording(folder)
  assert message in str(caught.value) and "\n" not in str(caught.value)
  shutil.rmtree(folder, ignore_errors=True)


def test_16_bits_are_read_as_they_were_written(tmp_path):
  wav = np.concatenate([np.arange(-32768, 32768)]).astype(np.int16)
  write_wav(tmp_path / "a.wav", wav)
  found, notes = read_wav(tmp_path / "a.wav")
  np.testing.assert_array_equal(found, wav / np.float32(32768))
  assert not notes and (tmp_path / "a.wav").stat().st_size < 2 * len(wav) + 100


def test_a_folder_that_is_none_is_one_line(tmp_path):
  about = dict(basis="arkit", places=2, generator="0", frames_ahead=0, stages="", person="", **ABOUT)
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match="^--recordings: found .*file"):
    RecordingFolder(tmp_path / "file", about)
  with pytest.raises(InputError, match="--recordings: basis: found a head that does not tell"):
    RecordingFolder(tmp_path / "new", about | {"basis": None})
