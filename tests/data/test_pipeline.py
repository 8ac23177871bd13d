"""Windows and batches: true cuts, no aliasing, reproducible, resumable, shared out between processes."""

import dataclasses
import os
import tracemalloc

import grain
import jax
import numpy as np
import pytest

from rsatalker_jax.data.pipeline import MotionClip, load_clips, motion_statistics, motion_windows
from rsatalker_jax.errors import InputError, MissingFeatures
from rsatalker_jax.speech import LogMel, logmel_features
from rsatalker_jax.speech.cache import StoredFeatures, cached
from rsatalker_jax.types import Conversation


def make_clips(lengths=(90, 130, 60, 61, 200)):
  """Clips in which every number tells clip and frame: 1000 · clip + frame."""
  clips = []
  for i, frames in enumerate(lengths):
    mark = (1000.0 * i + np.arange(frames, dtype=np.float32))[:, None]
    clips.append(
        MotionClip(
            name=f"clip{i}",
            speech_a=np.repeat(mark, 3, 1),
            motion_a=np.repeat(mark + 0.25, 56, 1),
            speech_b=np.repeat(mark + 0.5, 3, 1),
            motion_b=np.repeat(mark + 0.75, 56, 1),
            relation=np.array([i % 2, i // 2 % 2], np.int32),
            basis="flame2020",
        )
    )
  return clips


def take(dataset, count):
  iterator = iter(dataset)
  return [next(iterator) for _ in range(count)]


def marks(batches):
  """First frame's mark of every window."""
  return np.concatenate([batch["speech_a"][:, 0, 0] for batch in batches])


def test_windows_are_true_cuts_with_all_four_tracks_in_step():
  clips = make_clips()
  batch = take(motion_windows(clips, window=30, batch_size=8, seed=0), 1)[0]
  assert {k: v.shape for k, v in batch.items()} == dict(
      speech_a=(8, 30, 3), motion_a=(8, 30, 56), speech_b=(8, 30, 3), motion_b=(8, 30, 56), relation=(8, 2)
  )
  assert batch["relation"].dtype == np.int32
  for k in range(8):
    clip, start = divmod(int(batch["speech_a"][k, 0, 0]), 1000)
    for name in ("speech_a", "motion_a", "speech_b", "motion_b"):
      np.testing.assert_array_equal(batch[name][k], getattr(clips[clip], name)[start : start + 30])
    np.testing.assert_array_equal(batch["relation"][k], clips[clip].relation)


def test_no_aliasing():
  """The windows of one clip differ among themselves and stay what they were when later ones are drawn."""
  batches = take(motion_windows(make_clips((400,)), window=40, batch_size=10, seed=1), 5)
  starts = marks(batches)
  assert len(np.unique(starts)) > 40  # 50 random starts of 361: a few repeats only.
  before = [batch["motion_b"].copy() for batch in batches]
  batches[0]["motion_b"][:] = -1.0
  fresh = take(motion_windows(make_clips((400,)), window=40, batch_size=10, seed=1), 5)
  for kept, again in zip(before, fresh):
    np.testing.assert_array_equal(kept, again["motion_b"])


def test_windows_do_not_share_memory_with_the_clips():
  clips = make_clips((40,) * 3)
  batch = take(motion_windows(clips, window=40, batch_size=1, seed=0), 1)[0]
  batch["motion_b"][:] = -1.0
  assert all((clip.motion_b > 0).all() for clip in clips)


def test_an_epoch_serves_clips_by_their_length_and_reaches_every_frame():
  clips = make_clips((90, 130, 60, 200))
  starts = marks(take(motion_windows(clips, window=30, batch_size=4, seed=0, epochs=1), 4))
  assert np.bincount((starts // 1000).astype(int)).tolist() == [3, 4, 2, 7]
  starts = marks(take(motion_windows(make_clips((40,) * 9), window=30, batch_size=9, seed=0), 20))
  assert set(starts % 1000) == set(range(11))  # Every start, the first and the last one too.


def test_epochs_differ_and_seeds_differ():
  clips = make_clips()
  first = marks(take(motion_windows(clips, window=30, batch_size=6, seed=0), 6))
  assert sorted(first[:18]) != sorted(first[18:])
  assert (first != marks(take(motion_windows(clips, window=30, batch_size=6, seed=1), 6))).any()


def test_deterministic():
  clips = make_clips()
  make = lambda: take(motion_windows(clips, window=30, batch_size=6, seed=3), 7)
  jax.tree.map(np.testing.assert_array_equal, make(), make())


def test_one_process_draws_what_it_always_drew():
  """Runs that were begun before go on with their batches: the numbers are those of the first version."""
  first, *_, last = take(motion_windows(make_clips(), window=30, batch_size=6, seed=3), 7)
  assert marks([first]).tolist() == [1013, 4137, 4138, 2025, 1087, 1084]
  assert marks([last]).tolist() == [4003, 4115, 4151, 4158, 3031, 19]


def test_batches_do_not_depend_on_reader_threads(monkeypatch):
  threads, to_iter_dataset = [], grain.MapDataset.to_iter_dataset

  def spy(dataset, options):
    threads.append(options.num_threads)
    return to_iter_dataset(dataset, options)

  monkeypatch.setattr(grain.MapDataset, "to_iter_dataset", spy)
  options = lambda count: grain.ReadOptions(num_threads=count, prefetch_buffer_size=7)
  make = lambda count: motion_windows(make_clips(), window=30, batch_size=6, seed=3, read_options=options(count))
  jax.tree.map(np.testing.assert_array_equal, take(make(1), 7), take(make(5), 7))
  assert threads == [1, 5]


def test_features_on_disk_give_the_same_batches_to_the_bit(tmp_path):
  clips = make_clips()
  paths = iter(range(100))

  def on_disk(features):
    # At 50 Hz, as log-mel caches are: every other row is a frame.
    rows = np.random.default_rng(0).normal(size=(2 * len(features) - 1, 3)).astype(np.float32)
    rows[::2] = features
    return cached(tmp_path / f"{next(paths)}.npz", lambda: rows, num_frames=len(features))[0]

  stored = [dataclasses.replace(c, speech_a=on_disk(c.speech_a), speech_b=on_disk(c.speech_b)) for c in clips]
  make = lambda clips: take(motion_windows(clips, window=30, batch_size=6, seed=3, shard_index=1, shard_count=2), 7)
  batches = make(stored)
  jax.tree.map(np.testing.assert_array_equal, batches, make(clips))
  assert type(batches[0]["speech_a"]) is np.ndarray and batches[0]["speech_a"].dtype == np.float32


def test_a_process_opens_the_files_of_its_own_windows_alone(tmp_path):
  """Those that no window of an epoch needs may even be gone."""
  clips = []
  for clip in make_clips((60,) * 8):
    speech = [cached(tmp_path / f"{clip.name}{n}.npz", lambda: x)[0] for n, x in enumerate((clip.speech_a, clip.speech_b))]
    clips.append(dataclasses.replace(clip, speech_a=speech[0], speech_b=speech[1]))
  options = dict(window=60, batch_size=4, seed=0, shard_index=1, shard_count=2, epochs=1)
  own = set(marks(take(motion_windows(make_clips((60,) * 8), **options), 2)) // 1000)
  for number in set(range(8)) - own:
    for n in (0, 1):
      os.remove(tmp_path / f"clip{number}{n}.npz")
  assert set(marks(take(motion_windows(clips, **options), 2)) // 1000) == own


def test_a_restored_iterator_goes_on_with_the_same_batches():
  dataset = motion_windows(make_clips(), window=30, batch_size=6, seed=3)
  iterator = iter(dataset)
  for _ in range(5):
    next(iterator)
  state = iterator.get_state()
  expected = [next(iterator) for _ in range(6)]
  restored = iter(dataset)
  restored.set_state(state)
  jax.tree.map(np.testing.assert_array_equal, expected, [next(restored) for _ in range(6)])


def test_processes_share_an_epoch_without_overlap():
  clips = make_clips((60,) * 12)
  shards = [
      marks(take(motion_windows(clips, window=60, batch_size=6, seed=5, shard_index=i, shard_count=3, epochs=1), 2))
      for i in range(3)
  ]
  assert sorted(np.concatenate(shards) // 1000) == list(range(12))
  # And in the next epoch each process meets other clips than in this one.
  two = marks(take(motion_windows(clips, window=60, batch_size=6, seed=5, shard_index=0, shard_count=3), 4)) // 1000
  assert set(two[:4]) != set(two[4:])


@pytest.mark.parametrize("count", [2, 3, 6])
def test_batches_are_the_same_in_however_many_processes(count):
  """Also from the middle of an epoch on, with the state of a run of another number of processes."""
  options = dict(clips=make_clips((60,) * 4), window=30, batch_size=6, seed=3)  # 8 windows: batches reach over the ends of epochs.
  alone = iter(motion_windows(**options))
  expected = [next(alone) for _ in range(7)]
  shares = [iter(motion_windows(**options, shard_index=i, shard_count=count)) for i in range(count)]
  for number, batch in enumerate(expected):
    if number == 3:
      state = shares[-1].get_state()
      shares = [iter(motion_windows(**options, shard_index=i, shard_count=count)) for i in range(count)]
      for share in shares:
        share.set_state(state)
    parts = [next(share) for share in shares]
    jax.tree.map(np.testing.assert_array_equal, batch, jax.tree.map(lambda *rows: np.concatenate(rows), *parts))
  assert shares[0].get_state() == alone.get_state()


def test_a_batch_that_processes_do_not_divide_is_one_line():
  with pytest.raises(InputError, match="batch: found 4, expected a multiple of 3, the number of processes"):
    motion_windows(make_clips(), window=30, batch_size=4, seed=0, shard_index=1, shard_count=3)


def test_processes_draw_starts_of_their_own():
  """Clips of one length, one window each: as many starts as windows, spread over all of them and not alike."""
  clips = make_clips((1000,) * 40)
  shards = [
      marks(take(motion_windows(clips, window=1, batch_size=200, seed=5, shard_index=i, shard_count=4), 10)) % 1000
      for i in range(4)
  ]
  for i, starts in enumerate(shards):
    assert np.corrcoef([starts, np.arange(500)])[0, 1] ** 2 < 0.02
    assert abs(starts.mean() - 499.5) < 5 * 289 / np.sqrt(500)  # Uniform on 0 … 999: five deviations of the mean.
    for other in shards[:i]:
      assert np.mean(starts == other) < 0.02 and np.corrcoef(starts, other)[0, 1] ** 2 < 0.05
  again = marks(take(motion_windows(clips, window=1, batch_size=200, seed=5, shard_index=3, shard_count=4), 10)) % 1000
  np.testing.assert_array_equal(again, shards[3])
  other_seed = marks(take(motion_windows(clips, window=1, batch_size=200, seed=6, shard_index=3, shard_count=4), 10)) % 1000
  assert np.mean(other_seed == shards[3]) < 0.02


def test_short_clips_are_left_out_and_nothing_left_is_an_error():
  starts = marks(take(motion_windows(make_clips((30, 200)), window=60, batch_size=3, seed=0, epochs=1), 1))
  assert (starts >= 1000).all()
  with pytest.raises(InputError, match="found 0 windows of 60 frames in 2 clips, expected at least 1"):
    motion_windows(make_clips((30, 20)), window=60, batch_size=1, seed=0)


def test_statistics_equal_numpy_and_never_vanish():
  rng = np.random.default_rng(0)
  motions = [rng.normal(3.0, 2.0, (50, 56)).astype(np.float32) for _ in range(3)]
  for motion in motions:
    motion[:, 7] = 0.5
  clips = [MotionClip(str(i), None, None, None, m, None, basis="flame2020") for i, m in enumerate(motions)]
  mean, std = motion_statistics(clips)
  together = np.concatenate(motions).astype(np.float64)
  np.testing.assert_allclose(mean, together.mean(0), rtol=1e-14)
  moving = np.arange(56) != 7
  np.testing.assert_allclose(std[moving], together.std(0)[moving], rtol=1e-14)
  assert std[7] == 1e-3 and mean[7] == 0.5


def test_statistics_of_many_frames_far_from_zero_keep_their_digits_and_need_no_copy_of_all():
  """Dimensions that move by a hundredth about 30, in clips of different lengths."""
  rng = np.random.default_rng(0)
  motions = [(30 + 0.01 * rng.normal(size=(n, 56))).astype(np.float32) for n in rng.integers(1, 900, 40)]
  clips = [MotionClip(str(i), None, None, None, m, None, basis="flame2020") for i, m in enumerate(motions)]
  together = np.concatenate(motions).astype(np.float64)
  tracemalloc.start()
  mean, std = motion_statistics(clips)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  np.testing.assert_allclose(mean, together.mean(0), rtol=1e-13)
  np.testing.assert_allclose(std, together.std(0), rtol=1e-11)
  assert peak < 4 * 900 * 56 * 8 < together.nbytes / 4  # A few clips' worth.


def test_voices_are_encoded_once_for_both_directions():
  rng = np.random.default_rng(0)
  wavs = rng.normal(size=(6, 6400)).astype(np.float32)
  motion = np.zeros((10, 56), np.float32)
  source = []
  for i in range(3):
    a, b = wavs[2 * i], wavs[2 * i + 1]
    source.append(Conversation(f"{i}_speaker1", b, motion, a, motion, np.zeros(2, np.int32), basis="flame2020"))
    source.append(Conversation(f"{i}_speaker2", a, motion, b, motion, np.zeros(2, np.int32), basis="flame2020"))
  calls = []

  def encode(wav, frames):
    calls.append(wav.tobytes())
    return wav.reshape(frames, 640)[:, :2]

  clips = load_clips(source, encode)
  assert len(calls) == len(set(calls)) == 6
  for clip, conversation in zip(clips, source):
    np.testing.assert_array_equal(clip.speech_a, conversation.speech_a.reshape(10, 640)[:, :2])
    np.testing.assert_array_equal(clip.speech_b, conversation.speech_b.reshape(10, 640)[:, :2])
    assert clip.name == conversation.name
  for one, other in zip(clips[::2], clips[1::2]):
    assert one.speech_a is other.speech_b and one.speech_b is other.speech_a


def test_both_directions_share_their_motions():
  wav = np.zeros(6400, np.float32)
  source = []
  for i in range(2):
    read = lambda n: np.full((10, 56), 10 * i + n, np.float32)  # From disk each time, as a source reads it.
    source.append(Conversation(f"{i}_speaker1", wav, read(2), wav, read(1), np.zeros(2, np.int32), basis="flame2020"))
    source.append(Conversation(f"{i}_speaker2", wav, read(1), wav, read(2), np.zeros(2, np.int32), basis="flame2020"))
  source.append(Conversation("no truth", wav, read(1), wav, None, np.zeros(2, np.int32), basis="flame2020"))
  clips = load_clips(source, lambda wav, frames: np.zeros((frames, 2), np.float32))
  for clip, conversation in zip(clips, source):
    np.testing.assert_array_equal(clip.motion_a, conversation.motion_a)
    if conversation.motion_b is not None:
      np.testing.assert_array_equal(clip.motion_b, conversation.motion_b)
  assert clips[0].motion_a is clips[1].motion_b and clips[2].motion_b is clips[3].motion_a
  assert clips[4].motion_b is None


def test_clips_may_leave_their_features_on_disk(tmp_path):
  wavs = np.random.default_rng(0).normal(size=(2, 38400)).astype(np.float32)
  motion = np.zeros((60, 56), np.float32)
  source = [Conversation("x", wavs[0], motion, wavs[1], motion, np.zeros(2, np.int32), basis="flame2020")]
  encode = logmel_features(LogMel(), cache_dir=tmp_path)
  (stored,), (loaded,) = load_clips(source, encode.open), load_clips(source, encode)
  assert isinstance(stored.speech_a, StoredFeatures) and isinstance(loaded.speech_a, np.ndarray)
  assert not np.array_equal(loaded.speech_a, loaded.speech_b)
  for name in ("speech_a", "speech_b"):
    np.testing.assert_array_equal(getattr(stored, name)[20:40], getattr(loaded, name)[20:40])


def test_each_voice_has_its_degraded_variants_in_both_directions():
  wavs = np.random.default_rng(0).normal(size=(2, 6400)).astype(np.float32)
  motion, relation = np.zeros((10, 56), np.float32), np.zeros(2, np.int32)
  source = [Conversation(f"x{i}", wavs[i], motion, wavs[1 - i], motion, relation, basis="flame2020") for i in range(2)]
  encode = lambda wav, frames, degradation=None: (1.0 if degradation is None else degradation) * wav.reshape(frames, 640)[:, :2]
  first, second = load_clips(source, encode, (0.5, 0.25))
  for clip, conversation in zip((first, second), source):
    for degraded, wav in ((clip.degraded_a, conversation.speech_a), (clip.degraded_b, conversation.speech_b)):
      np.testing.assert_array_equal(degraded, [factor * wav.reshape(10, 640)[:, :2] for factor in (0.5, 0.25)])
  assert first.degraded_a[0] is second.degraded_b[0] and first.degraded_b[1] is second.degraded_a[1]
  assert load_clips(source, encode)[0].degraded_a == ()


def test_training_hears_each_variant_as_often_and_each_person_apart():
  clips = [
      dataclasses.replace(
          clip,
          degraded_a=tuple(clip.speech_a + 1e4 * n for n in (1, 2, 3)),
          degraded_b=tuple(clip.speech_b + 1e4 * n for n in (1, 2, 3)),
      )
      for clip in make_clips()
  ]
  make = lambda clips: take(motion_windows(clips, window=30, batch_size=16, seed=3), 30)
  batches, plain = make(clips), make(make_clips())
  heard = {name: np.concatenate([batch[name][:, 0, 0] // 1e4 for batch in batches]) for name in ("speech_a", "speech_b")}
  for numbers in heard.values():
    np.testing.assert_allclose(np.bincount(numbers.astype(int), minlength=4) / 480, 0.25, atol=0.05)
  assert np.mean(heard["speech_a"] == heard["speech_b"]) == pytest.approx(0.25, abs=0.06)
  for batch, other, again in zip(batches, plain, make(clips)):
    assert all(np.array_equal(batch[name], again[name]) for name in batch)
    for name in ("motion_a", "motion_b", "relation"):  # The same windows as without variants.
      np.testing.assert_array_equal(batch[name], other[name])
    for name in ("speech_a", "speech_b"):
      np.testing.assert_array_equal(batch[name] % 1e4, other[name])


def test_missing_features_name_the_clip():
  def encode(wav, frames):
    raise MissingFeatures("data/features", found="no speech features of encoder x")

  wav, motion = np.zeros(6400, np.float32), np.zeros((10, 56), np.float32)
  with pytest.raises(MissingFeatures, match="data/features: video7_speaker2: found no speech features of encoder x, expected .*encode_speech.py"):
    load_clips([Conversation("video7_speaker2", wav, motion, wav, motion, np.zeros(2, np.int32), basis="flame2020")], encode)
