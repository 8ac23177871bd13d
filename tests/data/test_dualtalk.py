"""The DualTalk layout: reading, pairing, trimming, labels, and one clear line for every kind of damage."""

import os
import pathlib

import numpy as np
import pytest

from configs.demo import get_config
from rsatalker_jax.data import audio, dualtalk
from rsatalker_jax.data.conversations import find_splits, load_conversations
from rsatalker_jax.errors import InputError

# Two real conversations beside a developer's checkout; a clone does not have them.
REAL = pathlib.Path(os.environ.get("RSATALKER_DUALTALK_DEMO", pathlib.Path(__file__).parents[3] / "shared/data/dualtalk_demo"))


def make_voice(seconds: float, seed: int) -> np.ndarray:
  return np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * 16000)).astype(np.float32)


def make_motion(frames: int, seed: int) -> np.ndarray:
  return np.random.default_rng(seed).normal(size=(frames, 56)).astype(np.float32)


def add_conversation(folder, name, *, frames=(50, 50), seconds=2.0, seed=0):
  folder.mkdir(parents=True, exist_ok=True)
  for n in (1, 2):
    audio.write_wav(folder / f"{name}_speaker{n}.wav", make_voice(seconds, 10 * seed + n))
    dualtalk.write_motion(folder / f"{name}_speaker{n}.npz", make_motion(frames[n - 1], 10 * seed + n), basis="flame2020")


@pytest.fixture
def root(tmp_path):
  """Six videos of two clips for training, two conversations for test, labelled."""
  names = [f"video{v}_sub_video_{c}" for v in range(6) for c in range(2)]
  for i, name in enumerate(names):
    add_conversation(tmp_path / "train", name, seed=i)
  for i in range(2):
    add_conversation(tmp_path / "test", f"unseen{i}_sub_video_0", seed=50 + i)
    names.append(f"unseen{i}_sub_video_0")
  rows = [f"{name},true,false" for name in names]
  (tmp_path / "relations.csv").write_text("\n".join(["conversation,blood,equal", *rows]) + "\n")
  return tmp_path


def expect(error, *parts):
  message = str(error.value)
  assert "\n" not in message
  for part in parts:
    assert part in message, message


# --- Motion files.


def test_motions_are_those_of_the_items_and_need_no_voices(root):
  source = dualtalk.load_dualtalk(root, "train")
  items = list(source)
  for wav in (root / "train").glob("*.wav"):
    wav.unlink()
  motions = list(source.motions())
  assert len(motions) == len(items) > 2
  for (motion_a, motion_b, relation), item in zip(motions, items):
    np.testing.assert_array_equal(motion_a, item.motion_a)
    np.testing.assert_array_equal(motion_b, item.motion_b)
    np.testing.assert_array_equal(relation, item.relation)


def test_motion_round_trip_has_all_keys_and_is_reproducible(tmp_path):
  motion = make_motion(9, 0)
  dualtalk.write_motion(tmp_path / "a.npz", motion, basis="flame2020")
  dualtalk.write_motion(tmp_path / "b.npz", motion, basis="flame2020")
  np.testing.assert_array_equal(dualtalk.read_motion(tmp_path / "a.npz"), motion)
  shapes = {key: array.shape for key, array in np.load(tmp_path / "a.npz").items()}
  assert shapes == dict(shape=(9, 100), tex=(9, 50), exp=(9, 50), pose=(9, 6), cam=(9, 3), light=(9, 9, 3), basis=())
  assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
  assert len(list(tmp_path.iterdir())) == 2


# --- Conversations.


def test_both_directions_with_roles_swapped(root):
  source = dualtalk.load_dualtalk(root, "test")
  assert [source[i].name for i in range(len(source))] == [
      "unseen0_sub_video_0_speaker1", "unseen0_sub_video_0_speaker2",
      "unseen1_sub_video_0_speaker1", "unseen1_sub_video_0_speaker2",
  ]
  first, second = source[0], source[1]
  np.testing.assert_array_equal(first.motion_b, make_motion(50, 501))
  np.testing.assert_array_equal(first.motion_a, make_motion(50, 502))
  np.testing.assert_array_equal(first.speech_b, make_voice(2.0, 501))
  np.testing.assert_array_equal(first.motion_a, second.motion_b)
  np.testing.assert_array_equal(first.speech_a, second.speech_b)
  assert first.relation.tolist() == [1, 0]
  assert source.skipped == [] and source.trimmed == []


def test_validation_is_whole_videos_of_train_and_never_test(root):
  train = [c.name for c in dualtalk.load_dualtalk(root, "train")]
  val = [c.name for c in dualtalk.load_dualtalk(root, "val")]
  video = lambda name: name.split("_sub_video_")[0]
  assert val and not {video(n) for n in train} & {video(n) for n in val}
  assert len(train) + len(val) == 24 and not any("unseen" in n for n in val)
  assert val == [c.name for c in dualtalk.load_dualtalk(root, "val")]


def test_a_val_folder_is_taken_and_train_left_whole(root):
  add_conversation(root / "val", "video9_sub_video_0")
  source = dualtalk.load_dualtalk(root, "val", default_relation="blood,equal")
  assert [c.name for c in source] == ["video9_sub_video_0_speaker1", "video9_sub_video_0_speaker2"]
  assert len(dualtalk.load_dualtalk(root, "train")) == 24


@pytest.mark.parametrize("frames, kept", [((51, 50), 50), ((52, 52), 50), ((49, 51), 49), ((50, 62), 50)])
def test_small_differences_are_trimmed_and_counted(tmp_path, frames, kept):
  add_conversation(tmp_path / "test", "a_sub_video_0", frames=frames)
  source = dualtalk.load_dualtalk(tmp_path, "test", default_relation="blood,equal")
  for c in source:
    assert c.motion_a.shape == c.motion_b.shape == (kept, 56)
    assert c.speech_a.shape == c.speech_b.shape == (kept * 640,)
  assert source.trimmed == [(f"a_sub_video_0_speaker{n}", max(*frames, 50) - kept) for n in (1, 2)]
  assert "trimmed" in source.summary()


def test_a_voice_that_ends_within_its_last_frame_counts_as_whole(tmp_path):
  add_conversation(tmp_path / "test", "a_sub_video_0", seconds=1.99)  # 49.75 frames.
  source = dualtalk.load_dualtalk(tmp_path, "test", default_relation="blood,equal")
  assert source.trimmed == [] and len(source[0].motion_b) == 50 and len(source[0].speech_b) == 32000
  np.testing.assert_array_equal(source[0].speech_b[round(1.99 * 16000) :], 0)


@pytest.mark.parametrize("frames", [(250, 50), (250, 250), (50, 63)])
def test_large_differences_are_errors(tmp_path, frames):
  add_conversation(tmp_path / "test", "a_sub_video_0", frames=frames)
  with pytest.raises(InputError) as error:
    dualtalk.load_dualtalk(tmp_path, "test", default_relation="blood,equal")
  expect(error, "a_sub_video_0", "frames", "50", str(max(frames)))


def test_incomplete_conversations_are_skipped_with_the_reason(root):
  (root / "test" / "unseen0_sub_video_0_speaker2.npz").unlink()
  source = dualtalk.load_dualtalk(root, "test")
  assert len(source) == 2
  assert source.skipped == [("unseen0_sub_video_0", "no unseen0_sub_video_0_speaker2.npz")]
  assert "1 skipped" in source.summary()


def test_a_listener_may_be_silent_but_not_both(root):
  audio.write_wav(root / "test" / "unseen0_sub_video_0_speaker1.wav", np.zeros(32000, np.float32))
  assert dualtalk.load_dualtalk(root, "test")[0].speech_b.max() == 0
  audio.write_wav(root / "test" / "unseen0_sub_video_0_speaker2.wav", np.zeros(32000, np.float32))
  with pytest.raises(InputError) as error:
    dualtalk.load_dualtalk(root, "test")[0]
  expect(error, "unseen0_sub_video_0", "silence")


def test_damage_is_found_before_training(root):
  path = root / "test" / "unseen1_sub_video_0_speaker1.wav"
  path.write_bytes(path.read_bytes()[:1000])
  with pytest.raises(InputError) as error:
    dualtalk.load_dualtalk(root, "test")
  expect(error, path.name, "cut off")


def test_splits_that_are_there(root):
  data = get_config().data
  data.update(dict(embedded_root="", conversations=str(root)))
  assert find_splits(data) == ["train", "val", "test"]
  for path in (root / "train").glob("video[1-5]_*"):
    path.unlink()
  assert find_splits(data) == ["train", "test"]  # One video: nothing to hold out.


def test_wrong_split_and_empty_folders(tmp_path):
  with pytest.raises(InputError) as error:
    dualtalk.load_dualtalk(tmp_path, "dev")
  expect(error, "'dev'", "train | val | test | ood")
  with pytest.raises(InputError) as error:
    dualtalk.load_dualtalk(tmp_path, "train")
  expect(error, "train", "no such folder")
  (tmp_path / "train").mkdir()
  with pytest.raises(InputError) as error:
    dualtalk.load_dualtalk(tmp_path, "train")
  expect(error, "no complete conversation")


# --- Labels.


def test_labels_are_those_of_existing_conversations(root):
  (root / "relations.csv").write_text("conversation,blood,equal\nnobody_sub_video_0,true,true\n")
  with pytest.raises(InputError) as error:
    dualtalk.load_dualtalk(root, "train", default_relation="blood,equal")
  expect(error, "relations.csv:2", "nobody_sub_video_0")


def test_contradictions_of_annotators_are_reported_for_the_split(root):
  lines = ["conversation,blood,equal,annotator", "unseen0_sub_video_0,true,true,ann", "unseen0_sub_video_0,true,false,ben"]
  lines += [f"video0_sub_video_0,{word},false,{who}" for word, who in (("true", "ann"), ("false", "ben"))]
  (root / "relations.csv").write_text("\n".join([*lines, "unseen1_sub_video_0,false,true,ann"]) + "\n")
  source = dualtalk.load_dualtalk(root, "test")
  assert [c.relation.tolist() for c in source] == [[1, -1], [1, -1], [0, 1], [0, 1]]
  line = "annotators contradict each other: blood 0 (0 by majority, 0 now unknown), equal 1 (0 by majority, 1 now unknown)"
  assert source.contradictions == line and f"  {line}" in source.report("test")
  (root / "relations.csv").write_text("\n".join([*lines[:2], "unseen1_sub_video_0,false,true,ann"]) + "\n")
  source = dualtalk.load_dualtalk(root, "test")
  assert source.contradictions == "" and not any("annotators" in line for line in source.report("test"))


def test_labels_in_the_encodings_of_spreadsheets(root):
  text = (root / "relations.csv").read_text()
  for encoding in ("utf-8-sig", "utf-16"):
    (root / "relations.csv").write_bytes(text.encode(encoding))
    assert [c.relation.tolist() for c in dualtalk.load_dualtalk(root, "test")] == [[1, 0]] * 4
  (root / "relations.csv").write_bytes((text + "Müller,true,true\n").encode("latin1"))
  with pytest.raises(InputError) as error:
    dualtalk.load_dualtalk(root, "train")
  expect(error, "relations.csv: byte", "which is not UTF-8, expected a csv", "saved as UTF-8")
  (root / "relations.csv").write_text(text + '"' + "a" * 200_000)
  with pytest.raises(InputError) as error:
    dualtalk.load_dualtalk(root, "train")
  expect(error, "relations.csv:16: found field larger than field limit")


def test_names_that_are_no_clips_are_hidden_or_named(root):
  for path in list((root / "train").iterdir()):
    path.with_name("._" + path.name).write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(100))
  source = dualtalk.load_dualtalk(root, "train")
  assert source.skipped == [] and dualtalk.present_splits(root) == ["train", "val", "test"]
  (root / "train" / "notes.txt").touch()
  ((skipped, reason),) = dualtalk.load_dualtalk(root, "train").skipped
  assert skipped == f"1 other file in {root / 'train'}" and reason == "no clip's name: notes.txt"
  wav = root / "test" / "unseen0_sub_video_0_speaker1.wav"
  wav.rename(wav.with_suffix(".WAV"))
  skipped = dict(dualtalk.load_dualtalk(root, "test").skipped)
  assert skipped["unseen0_sub_video_0"] == "no unseen0_sub_video_0_speaker1.wav (there is unseen0_sub_video_0_speaker1.WAV)"
  for path in (root / "test").glob("unseen1*"):
    path.unlink()
  (root / "relations.csv").write_text("conversation,blood,equal\n")
  with pytest.raises(InputError) as error:
    dualtalk.load_dualtalk(root, "test")
  expect(error, "no complete conversation (1 incomplete, as unseen0_sub_video_0: no unseen0_sub_video_0_speaker1.wav (there is")
  for path in (root / "test").iterdir():
    path.rename(path.with_suffix(path.suffix.upper()))
  with pytest.raises(InputError) as error:
    dualtalk.load_dualtalk(root, "test")
  expect(error, "no complete conversation (4 other files in", "unseen0_sub_video_0_speaker1.NPZ, unseen0_sub_video_0_speaker1.WAV, ")


def test_unlabelled_conversations_need_a_default(root):
  (root / "relations.csv").write_text("conversation,blood,equal\nunseen0_sub_video_0,true,true\n")
  with pytest.raises(InputError) as error:
    dualtalk.load_dualtalk(root, "test")
  expect(error, "relations.csv", "unseen1_sub_video_0")
  source = dualtalk.load_dualtalk(root, "test", default_relation="non_blood,unequal")
  assert [c.relation.tolist() for c in source] == [[1, 1], [1, 1], [0, 0], [0, 0]]
  assert source.unlabelled == ["unseen1_sub_video_0"] and "1 conversations without a label" in "\n".join(source.report("test"))


def test_the_word_unknown_is_a_label(root):
  (root / "relations.csv").write_text("conversation,blood,equal\nunseen0_sub_video_0,unknown,unknown\nunseen1_sub_video_0,true,unknown\n")
  source = dualtalk.load_dualtalk(root, "test")
  assert [c.relation.tolist() for c in source] == [[-1, -1], [-1, -1], [1, -1], [1, -1]] and source.unlabelled == []


def test_no_labels_at_all(root):
  (root / "relations.csv").unlink()
  with pytest.raises(InputError) as error:
    dualtalk.load_dualtalk(root, "test")
  expect(error, "relations.csv", "unseen0_sub_video_0", "default relation")
  with pytest.raises(InputError) as error:
    dualtalk.load_dualtalk(root, "test", relations=root / "labels.csv")
  expect(error, "labels.csv", "No such file")
  data = get_config().data
  data.update(dict(embedded_root=str(root), conversations="", relations="relations.csv"))
  with pytest.raises(InputError):
    load_conversations(data, "test")
  data.default_relation = "unknown"  # As for DualTalk itself.
  source = load_conversations(data, "test")
  assert [c.relation.tolist() for c in source] == [[-1, -1]] * 4 and len(source.unlabelled) == 2
  data.default_relation = "friends"
  with pytest.raises(InputError) as error:
    load_conversations(data, "test")
  expect(error, "data.default_relation", "'friends'", "unknown")


# --- Single files, for one generation.


def test_read_conversation(root):
  folder = root / "test"
  c, notes = dualtalk.read_conversation(
      folder / "unseen0_sub_video_0_speaker1.wav",
      folder / "unseen0_sub_video_0_speaker1.npz",
      folder / "unseen0_sub_video_0_speaker2.wav",
      "non_blood,equal",
  )
  assert c.motion_b is None and c.basis == "flame2020" and c.relation.tolist() == [0, 1]
  assert notes == [f"{folder / 'unseen0_sub_video_0_speaker1.npz'}: expressions are flame2020's, by its key basis"]
  np.testing.assert_array_equal(c.motion_a, make_motion(50, 501))
  np.testing.assert_array_equal(c.speech_b, make_voice(2.0, 502))


def test_read_conversation_refuses_what_does_not_fit(root):
  folder = root / "test"
  wav, npz = folder / "unseen0_sub_video_0_speaker1.wav", folder / "unseen0_sub_video_0_speaker1.npz"
  with pytest.raises(InputError) as error:
    dualtalk.read_conversation(wav, npz, wav, "friends")
  expect(error, "--relation", "'friends'", "blood,equal")
  dualtalk.write_motion(npz, make_motion(250, 0), basis="flame2020")
  with pytest.raises(InputError) as error:
    dualtalk.read_conversation(wav, npz, wav, "blood,equal")
  expect(error, "frames", "50", "250")


@pytest.mark.skipif(not REAL.is_dir(), reason=f"needs DualTalk's demo files in {REAL}")
@pytest.mark.parametrize(
    "conversation, person, frames", [("UbjUDM1MiGE_sub_video_72", 2, 587), ("xkHwlcDSOjc_sub_video_109_000", 1, 749)]
)
def test_real_conversations(conversation, person, frames):
  """587.2 and 748.8 frames of sound, 587 and 750 of motion."""
  a, b = f"{conversation}_speaker{person}", f"{conversation}_speaker{3 - person}"
  c, notes = dualtalk.read_conversation(REAL / f"{a}.wav", REAL / f"{a}.npz", REAL / f"{b}.wav", "unknown")
  assert c.motion_a.shape == (frames, 56) and c.speech_a.shape == c.speech_b.shape == (frames * 640,)
  assert c.basis == "flame2020" and "expressions are flame2020's, by the range of its coefficients" in notes[0]
  assert len(notes) == 2 and "1 frames trimmed" in notes[1]
  assert c.relation.tolist() == [-1, -1]
  assert np.abs(c.motion_a[:, 50:53]).max() < 0.5 and c.motion_a[:, 50].mean() > 0  # A jaw, slightly open.


@pytest.mark.skipif(not REAL.is_dir(), reason=f"needs DualTalk's demo files in {REAL}")
def test_real_conversations_as_a_data_set_without_labels(tmp_path):
  """As they come, one person's motion lacks; with the other's in its place, both directions are served."""
  (tmp_path / "train").mkdir()
  for path in REAL.glob("*_speaker*"):
    (tmp_path / "train" / path.name).symlink_to(path)
  data = get_config().data
  data.update(dict(embedded_root="", conversations=str(tmp_path), relations=str(tmp_path / "relations.csv")))
  data.default_relation = "unknown"
  with pytest.raises(InputError, match=r"no complete conversation \(1 incomplete, as "):  # The other is held out.
    load_conversations(data, "train")
  for path in list((tmp_path / "train").glob("*.npz")):
    other = path.with_name(path.name.replace("speaker1", "speaker_").replace("speaker2", "speaker1").replace("speaker_", "speaker2"))
    other.symlink_to(path.resolve())
  served = [clip for split in find_splits(data) for clip in load_conversations(data, split)]
  assert sorted(len(clip.motion_b) for clip in served) == [587, 587, 749, 749]
  assert all(clip.relation.tolist() == [-1, -1] for clip in served)
