"""Where no camera sees A, its motion is what a second stream makes when the two change places: against two `MotionStream`s by hand."""

import numpy as np
import pytest

from live.test_live_engine import loaded, make_run
from rsatalker_jax.live import engine as engines
from rsatalker_jax.live.partner import InventedPartner
from rsatalker_jax.live.seen import SeenMotion
from rsatalker_jax.live.worker import Worker

FRAMES = 10


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return make_run(tmp_path_factory.mktemp("run"))


def make_voices():
  rng = np.random.default_rng(5)
  loudness = 10 ** rng.uniform(-3, -1, size=(2, FRAMES, 1))
  return np.round(32767 * (loudness * rng.normal(size=(2, FRAMES, 640))).clip(-1, 1)).astype(np.int16)


RELATIONS = [np.array([1, 1])] * 4 + [np.array([0, -1])] * (FRAMES - 4)
SEEN = np.random.default_rng(6).normal(size=56).astype(np.float32)


def converse(worker, session, seen_in=()):
  """B's motions and A's, as they were made and given."""
  a, b = make_voices()
  worker._send("open", session, RELATIONS[0], np.zeros(0, np.int16))
  made, given = [], []
  for frame in range(FRAMES):
    if frame == 4:
      worker.relate(session, RELATIONS[4])
    worker.push(session, frame, a[frame], b[frame], SEEN if frame in seen_in else None)
    kind, _, number, motion, face = worker._connection.recv()
    assert (kind, number) == ("motion", frame)
    made.append(motion), given.append(face)
  worker._send("close", session, None)
  return np.array(made), np.array(given)


def expect(run, seen_in=()):
  """The same by hand."""
  a, b = make_voices() / np.float32(32768)
  own, mirror = (run.stream(RELATIONS[0], lengths=(1,)) for _ in range(2))
  mixing, last = SeenMotion(), run.buffers["generator"]["motion_mean"]
  made, given = [], []
  for frame in range(FRAMES):
    own.social = mirror.social = run.social_feature(RELATIONS[frame])
    face = mixing.mix(SEEN if frame in seen_in else None, mirror.push(b[frame], last[None], a[frame])[0])
    last = own.push(a[frame], face[None], b[frame])[0]
    made.append(last), given.append(face)
  return np.array(made), np.array(given)


def test_a_is_what_the_generator_makes_in_its_place(monkeypatch, run):
  loaded(monkeypatch, a=run)
  worker = Worker(engines.load_engine, "a", None, None, 2, None, own_process=False)
  try:
    for session, seen_in in ((0, ()), (1, (3, 4)), (2, ())):  # In places where others have been.
      made, given = converse(worker, session, seen_in)
      expected, faces = expect(run, seen_in)
      np.testing.assert_allclose(given, faces, atol=3e-5)
      np.testing.assert_allclose(made, expected, atol=3e-5)
    neutral = run.buffers["generator"]["motion_mean"]
    assert np.abs(given - neutral).max(axis=1).min() > 0.01 and np.std(given, axis=0).mean() > 0.02
  finally:
    worker.stop()


def test_it_may_be_neutral_and_is_where_nothing_can_be_made(monkeypatch, run, tmp_path):
  loaded(monkeypatch, a=run, ahead=make_run(tmp_path, own_lookahead=2))
  for workdir, unseen in (("a", "neutral"), ("ahead", "invented")):
    engine = engines.load_engine(workdir, None, None, 1, None, unseen)
    assert engine.partner is None
    np.testing.assert_array_equal(engine.neutral, run.buffers["generator"]["motion_mean"])


def test_numbers_that_are_none_are_not_passed_on(run):
  neutral = np.full(56, 0.5, np.float32)
  batch = run.stream_batch(1)
  partner = InventedPartner(batch, neutral)
  (stream,) = batch.streams
  partner.begin(stream)
  quiet = np.zeros(640, np.float32)
  (face,) = partner.suppose([(stream, quiet, quiet)])
  assert face.shape == (56,) and (face != neutral).any()
  partner.see(stream, np.full(56, np.nan, np.float32))
  np.testing.assert_array_equal(partner.suppose([(stream, quiet, quiet)])[0], neutral)
  partner.begin(stream)
  np.testing.assert_array_equal(partner.suppose([(stream, quiet, quiet)])[0], face)
