"""A trained run behind the live page: its motion is the stream's, relations change within a conversation, mistakes are one line."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.demo import get_config
from motion_configs import motion_config
from rsatalker_jax.avatar import init_avatar
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import load_head
from rsatalker_jax.live import engine as engines
from rsatalker_jax.live.seen import SeenMotion
from rsatalker_jax.live.worker import Worker
from rsatalker_jax.motion import MotionGenerator
from rsatalker_jax.runs import TrainedRun, shown
from rsatalker_jax.sharding import BANK
from rsatalker_jax.social import GaussianOffsetNet, SocialModule
from rsatalker_jax.speech import LogMel
from rsatalker_jax.talker import Talker
from tiny_world import write_head

ENCODER = LogMel(num_mels=2, causal=True)
SOCIAL = SocialModule(8, relation_features=4, hidden=8)
FRAMES = 12


def make_run(folder, own_lookahead=0):
  """A trained run, but for the training: random parameters, on the tiny world's head."""
  generator = MotionGenerator(motion_config(
      features=8, heads=2, reach=3, encoder_layers=1, decoder_layers=1, speech_hidden=8, speech_kernel=3, dropout=0.0,
      query_time=True, causal=True, own_lookahead=own_lookahead,
  ))  # fmt: skip
  config = get_config("causal")
  config.speech.num_mels = ENCODER.num_mels
  frame = jnp.zeros((1, ENCODER.features))
  shapes = {
      "generator": jax.eval_shape(generator.init, jax.random.key(0), frame, jnp.zeros((1, 56)), frame, jnp.zeros(8)),
      "social": jax.eval_shape(SOCIAL.init, jax.random.key(0), np.zeros(2, np.int32)),
  }
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda x: (0.3 * rng.normal(size=x.shape)).astype(np.float32), shapes)
  params["generator"]["params"]["motion_decoder"]["norm"]["scale"] += 1.0
  del params["generator"]["statistics"]
  statistics = {"motion_mean": np.linspace(-0.5, 0.5, 56, dtype=np.float32), "motion_std": np.ones(56, np.float32)}
  write_head(folder / "head.npz")
  head = load_head(folder / "head.npz")
  avatar = jax.device_get(init_avatar(head, np.zeros(2, np.float32), num_gaussians=len(head.faces), sh_degree=1))
  params["avatar"] = {field.name: getattr(avatar.gaussians, field.name) for field in dataclasses.fields(avatar.gaussians)}
  buffers = {"generator": statistics, "avatar": {"binding": avatar.binding, "shape": avatar.shape, "static_offset": None}}
  talker = Talker(head, SOCIAL, generator, None, True, None, None, (1.0, 1.0, 1.0))
  return TrainedRun(config, talker, params, buffers, "motion:1 avatar:1")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return make_run(tmp_path_factory.mktemp("run"), own_lookahead=2)


def loaded(monkeypatch, **runs):
  monkeypatch.setattr(shown, "load_run", lambda workdir, person=None: runs[workdir])


def test_motion_is_that_of_the_stream(monkeypatch, run):
  loaded(monkeypatch, a=run)
  worker = Worker(engines.load_engine, "a", None, None, 1, None, own_process=False)
  try:
    assert worker.about["frames_ahead"] == 2 and worker.about["stages"] == "motion:1 avatar:1" and worker.avatar
    rng = np.random.default_rng(2)
    loudness = 10 ** rng.uniform(-4, -1, size=(2, FRAMES, 1))
    a, b = np.round(32767 * (loudness * rng.normal(size=(2, FRAMES, 640))).clip(-1, 1)).astype(np.int16)
    seen = rng.normal(size=56).astype(np.float32)
    relations = [np.array([1, 1])] * 6 + [np.array([0, -1])] * (FRAMES - 6)
    made, neutral = [], run.buffers["generator"]["motion_mean"]
    mixing = SeenMotion()
    faces = [mixing.mix(seen if frame == 3 else None, neutral) for frame in range(FRAMES - 2)]
    assert (faces[2] == neutral).all() and 0.01 < abs(faces[3] - neutral).max() < abs(seen - neutral).max()
    for session in (0, 1):  # The second conversation in the same place: nothing is left of the first.
      worker._send("open", session, relations[0], b[:2].reshape(-1))
      for frame in range(FRAMES - 2):
        if frame == 6:
          worker.relate(session, relations[6])
        worker.push(session, frame, a[frame], b[frame + 2], seen if frame == 3 else None)
        kind, found, number, motion, given = worker._connection.recv()
        assert (kind, found, number) == ("motion", session, frame)
        np.testing.assert_array_equal(given, faces[frame])
        made.append(motion)
      worker._send("close", session, None)
    np.testing.assert_array_equal(made[: FRAMES - 2], made[FRAMES - 2 :])
  finally:
    worker.stop()
  stream = run.stream(relations[0], lengths=(1,))
  stream.prime(b[:2].reshape(-1) / 32768)
  for frame in range(FRAMES - 2):
    stream.social = run.social_feature(relations[frame])
    expected = stream.push(a[frame] / 32768, faces[frame][None], b[frame + 2] / 32768)
    np.testing.assert_array_equal(made[frame], expected[0])
  assert np.std(made, axis=0).mean() > 0.05


def test_another_relation_is_another_motion_from_that_frame_on(run):
  engine = engines.RunEngine(run, run, "a", conversations=2)
  rng = np.random.default_rng(3)
  wavs = (0.1 * rng.normal(size=(2, 640 * 6))).astype(np.float32)
  made = []
  for stream, then in zip(engine.streams, ((1, 1), (0, 0)), strict=True):
    engine.relate(stream, np.array([1, 1]))
    stream.prime(np.zeros(1280, np.float32))
    frames = []
    for frame in range(6):
      if frame == 3:
        engine.relate(stream, np.array(then))
      part = slice(640 * frame, 640 * (frame + 1))
      frames.append(stream.push(wavs[0, part], engine.neutral[None], wavs[1, part])[0])
    made.append(frames)
  differences = np.abs(np.subtract(*made)).max(axis=1)
  assert not differences[:3].any() and (differences[3:] > 1e-3).all()


def play(worker, streams, hears):
  """B's motions of each session of `streams` ((a, b) in frames), a frame of each in turn; `hears` may send more in between."""
  made = {session: [] for session in streams}
  for session, (_, b) in streams.items():
    worker._send("open", session, np.array([1, session % 2]), b[:2].reshape(-1))
  for frame in range(FRAMES - 2):
    for session, (a, b) in streams.items():
      worker.push(session, frame, a[frame], b[frame + 2], None)
    for message in hears(frame):
      worker._send(*message)
    while any(len(motions) <= frame for motions in made.values()):
      kind, session, *given = worker._connection.recv()
      if session in made:
        assert (kind, given[0]) == ("motion", frame)
        made[session].append(given[1])
  for session in streams:
    worker._send("close", session, None)
  return {session: np.stack(motions) for session, motions in made.items()}


def test_nobody_changes_what_another_is_answered(monkeypatch, run):
  """Two conversations, and in the third place others that come, go, send garbage and break: not a bit is other than alone."""
  loaded(monkeypatch, a=run)
  rng = np.random.default_rng(5)
  voices = {session: np.round(3000 * rng.normal(size=(2, FRAMES, 640))).astype(np.int16) for session in (1, 2)}
  loud = np.full(640, 32767, np.int16)

  def disturb(frame):
    session = 10 + frame // 3
    if frame % 3 == 0:
      return [("open", session, np.array([0, 0]), loud.repeat(2)), ("frame", session, 0, loud, loud, np.full(56, 1e38, np.float32))]
    if frame % 3 == 1:  # It may have ended by what it got.
      return [("frame", session, 1, loud[:5], loud, None), ("relation", session, np.array([0, 0]))]
    return [("frame", session, 2, loud, loud, np.full(56, np.nan, np.float32)), ("close", session, None)]

  worker = Worker(engines.load_engine, "a", None, None, 3, None, own_process=False)
  try:
    assert worker.about["places"] == 3 and worker.about["step_ms"] > 0
    alone = {session: play(worker, {session: voices[session]}, lambda frame: ())[session] for session in (2, 1)}
    together = play(worker, voices, disturb)
  finally:
    worker.stop()
  for session in (1, 2):
    np.testing.assert_array_equal(together[session], alone[session])
  assert np.abs(alone[1] - alone[2]).max() > 0.1


def test_as_many_as_the_device_holds_is_measured(run):
  class Batch:
    def __init__(self, places):
      self.places = places

  made = []
  make = lambda places: made.append(places) or Batch(places)
  for seconds, places, tried in (
      (lambda batch: 0.001, engines.MOST_CONVERSATIONS, [1, 2, 4, 8, 16, 32, 64]),
      (lambda batch: 0.002 * batch.places, 4, [1, 2, 4, 8]),  # 10 ms hold five.
      (lambda batch: 0.010, 64, [1, 2, 4, 8, 16, 32, 64]),
      (lambda batch: 1.0, 1, [1, 2]),
  ):
    made.clear()
    batch, found = engines.find_largest(make, seconds)
    assert (batch.places, found, made) == (places, seconds(batch), tried)
  batch = run.stream_batch(2)
  states = jax.device_get(batch._state)
  assert 0 < engines.measure_step(batch, 3) < 60
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(batch._state), states)  # Nobody has been there.


def test_corrections_of_the_avatar_go_to_the_page(run):
  """Those of the run whose avatar it is, a row for each relation that the page can choose."""
  net = GaussianOffsetNet(len(run.talker.head.faces), hidden=6)
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(8), jnp.zeros(()), jnp.zeros(56))
  params = jax.tree.map(lambda x: np.full(x.shape, 0.01, np.float32), shapes)
  shown = dataclasses.replace(run, talker=dataclasses.replace(run.talker, offset_net=net), params=run.params | {"offsets": params})
  engine = engines.RunEngine(run, shown, "a", conversations=1)
  tables = {table["name"]: table["shape"] for table in engine.about["tables"]}
  assert len(engine.about["relations"]) == 9 and {"unknown", "blood,unknown", "non_blood,equal"} < set(engine.about["relations"])
  assert tables["offsets/start"] == (1, 9 * 6, 1) and tables["offsets/anchors"] == (140,)
  assert not [name for name in engines.RunEngine(run, run, "a", conversations=1).about["tables"] if name["name"].startswith("offsets")]


def test_all_people_of_a_run_can_be_chosen(monkeypatch, run):
  people = ("ann", "bob", "eve")
  stack = lambda group: {name: [value, value, value] for name, value in group.items()}
  bank, buffers = stack(run.params["avatar"]), stack(run.buffers["avatar"])
  bank["means"][2] = np.random.default_rng(0).normal(size=bank["means"][2].shape).astype(np.float32)
  all_of_them = dataclasses.replace(
      changed(run, data__captures=people), params=run.params | {BANK: bank}, buffers=run.buffers | {BANK: buffers}, names=people
  )
  monkeypatch.setattr(shown, "load_run", lambda workdir, person=None: all_of_them.of_person(people.index(person or "ann")))
  engine = engines.load_engine("a", None, "bob", 1, None)
  assert engine.about["person"] == "bob" and list(engine.others) == list(engine.about["others"]) == ["ann", "eve"]
  assert engine.others["ann"] == engine.avatar != engine.others["eve"]
  for person in ("ann", "eve"):
    assert engine.about["others"][person].keys() == {"fps", "background", "view", "tables"}
  assert engine.about["others"]["ann"]["tables"] == engine.about["tables"] != engine.about["others"]["eve"]["tables"]


def without(run, name):
  return dataclasses.replace(run, params={key: value for key, value in run.params.items() if key != name})


def changed(run, **values):
  config = run.config.copy_and_resolve_references()
  config.update_from_flattened_dict({key.replace("__", "."): value for key, value in values.items()})
  return dataclasses.replace(run, config=config)


def test_mistakes_are_one_line(monkeypatch, run):
  looks_ahead = changed(run, generator__causal=False)
  fewer = dataclasses.replace(run.talker.head, faces=run.talker.head.faces[:-1])
  runs = dict(
      good=run,
      ahead=looks_ahead,
      ahead_alone=without(looks_ahead, "avatar"),
      wav2vec=changed(run, speech__encoder="wav2vec2"),
      motion=without(run, "avatar"),
      avatar=without(run, "generator"),
      arkit=dataclasses.replace(run, talker=dataclasses.replace(run.talker, head=run.talker.head.replace(basis="arkit"))),
      mesh=dataclasses.replace(run, talker=dataclasses.replace(run.talker, head=fewer)),
  )
  loaded(monkeypatch, **runs)
  for workdir, avatar_from, message in (
      ("ahead", None, "^ahead: generator.causal: found a generator that looks ahead, expected one that is causal, as --config=.*trains$"),
      ("ahead_alone", None, "^ahead_alone: generator.causal"),
      ("motion", None, "^motion: avatar: found only motion:1 avatar:1, expected a finished avatar stage, or --avatar_from=RUN"),
      ("good", "motion", "^motion: avatar"),
      ("avatar", None, "motion: found only .*, expected a finished motion stage"),
      ("wav2vec", None, "speech.encoder: found 'wav2vec2', expected 'logmel'"),
      ("good", "arkit", "flame2020"),
      ("good", "mesh", "^mesh: head: found 139 faces, expected those 140 of good's head"),
  ):
    with pytest.raises(InputError, match=message):
      engines.load_engine(workdir, avatar_from, None, 1, None)
  assert engines.load_engine("motion", "good", None, 1, None).streams  # The avatar of another run.
