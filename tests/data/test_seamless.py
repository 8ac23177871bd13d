"""UniLS-Talk joined with Seamless Interaction: known joins are found, known faults are passed over and named."""

import csv
import json
import os
import pickle
import shutil
import struct
import tarfile

import grain
import numpy as np
import pytest
import seamless_mock
from seamless_mock import FRAMES, Mock, ids_of, make_code, make_voice, npz_bytes, write_mock

from rsatalker_jax.commands.seamless import prepare_conversations
from rsatalker_jax.data import audio
from rsatalker_jax.data.dualtalk import load_dualtalk
from rsatalker_jax.data.relations import RelationLabel, read_labels, read_relations, write_relations
from rsatalker_jax.data.seamless import Selection, join_conversations, load_seamless, present_seamless_splits, write_conversations
from rsatalker_jax.data.seamless.names import FileId, Session, Skip, describe_skips, parse_file_id, parse_group
from rsatalker_jax.data.seamless.recordings import Recordings
from rsatalker_jax.data.seamless.tables import RELATIONS, read_mapping, read_tables
from rsatalker_jax.data.seamless.talk import Talk, check_lengths, read_pairs
from rsatalker_jax.errors import InputError


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  return write_mock(tmp_path_factory.mktemp("mock"))


def skips(join) -> dict[str, str]:
  return {skip.name: skip.kind for skip in join.skipped}


# --- Names


def test_file_ids():
  found = parse_file_id("/somebody/V00_S0809_I00000582_P0947.npz")
  assert found == FileId("V00_S0809_I00000582", "P0947", "")
  assert (found.name, found.session, found.prompt, found.speaker) == ("V00_S0809_I00000582_P0947", Session(0, 809), 582, "V00_P0947")
  piece = parse_file_id("V01_S1_I2_P3_0004.25.npz")
  assert (piece.name, piece.rest, piece.session) == ("V01_S1_I2_P3", "_0004.25", (1, 1))
  for text in ("", "V00_S0809_I00000582", "x_V00_S1_I1_P1", "V00_S1_I1_P1/..", "V00_S1_I1_P1\\..", "V0_S1_I1_P1 x", "V0_S1_I1_P1A", "V٠_S1_I1_P1",
               "V00_S1_I1_P1" + "_" * 81):
    assert parse_file_id(text) is None, text


def test_groups():
  assert parse_group("V00") == 0 and parse_group(" V1_S0223 ") == Session(1, 223)
  assert [parse_group(text) for text in ("", "0", "V", "V0_S", "S0223", "V0_S1_I1", "V00;")] == [None] * 7


def test_skips_are_counted_by_kind_and_some_are_shown():
  lines = list(describe_skips([Skip("a", "rare", "why"), *(Skip(f"b{i}", "often") for i in range(5))], examples=2))
  assert lines == ["5 × often: b0; b1; ...", "1 × rare: a: why"]


# --- UniLS-Talk


def test_columns_of_a_motioncode(world):
  """Against the columns that UniLS's own code takes: [:104], [106:108], [109:111]."""
  mock, _ = world
  name = "V00_S0002_I00000001_P0003"
  recording = Talk(mock.talk / "SeamlessInteractionTalk/data_lmdb").read(f"{name}.npz")
  code = make_code(mock.seeds[name])
  used = np.concatenate([code[:, :104], code[:, 106:108], code[:, 109:111]], axis=1)
  np.testing.assert_array_equal(recording.expression, used[:, :100])
  np.testing.assert_array_equal(recording.motion[:, :50], used[:, :50])
  np.testing.assert_array_equal(recording.motion[:, 50:53], np.stack([used[:, 103], 0 * used[:, 0], 0 * used[:, 0]], axis=1))
  np.testing.assert_array_equal(recording.motion[:, 53:56], used[:, 100:103])
  np.testing.assert_array_equal(recording.eyes, used[:, 104:108])
  np.testing.assert_array_equal(recording.voice, make_voice(mock.seeds[name]))
  assert recording.motion.dtype == recording.voice.dtype == np.float32 and abs(recording.motion[:, 53:56].mean()) < 1e-6


def test_voices_of_other_types(tmp_path):
  mock = Mock(tmp_path)
  voice, code = make_voice(1), make_code(1)
  whole = np.round(voice * 32768).astype(np.int16)
  forms = {"ints": whole, "half": voice.astype(np.float16), "double": voice.astype(float), "row": voice[None], "column": voice[:, None]}
  for name, array in forms.items():
    mock.values[name] = npz_bytes(audio=array, motioncode=code.astype(np.float64))
  for name, array in {"loud": voice * 32768, "nan": voice * np.nan, "stereo": np.stack([voice, voice]), "int32": whole.astype(np.int32),
                      "short": voice[:100], "empty": voice[:0]}.items():
    mock.values[name] = npz_bytes(audio=array, motioncode=code)
  mock.write()
  talk = Talk(mock.talk / "SeamlessInteractionTalk/data_lmdb")
  for name in ("ints", "half", "double", "row", "column"):
    np.testing.assert_allclose(talk.read(name).voice, voice, atol=3e-4 if name == "half" else 2e-5)
    assert talk.measure(name) == (FRAMES, len(voice))
  assert np.abs(talk.read("ints").voice - voice).max() > 1e-7  # Through 16 bits.
  for name, words in {"loud": "a peak of 9", "nan": "finite", "stereo": "shape", "int32": "int32", "short": "shape", "empty": "shape"}.items():
    with pytest.raises(InputError, match=f"{name}: audio.*{words}"):
      talk.read(name)
  assert list(talk.keys()) == sorted(mock.values)


def test_motioncodes_of_other_shapes(tmp_path):
  mock = Mock(tmp_path)
  code = make_code(1)
  others = {"narrow": code[:, :110], "flat": code[0], "deep": code[None], "empty": code[:0], "integers": code.astype(int), "text": code.astype("U9")}
  mock.values |= {name: npz_bytes(motioncode=array) for name, array in others.items()}
  mock.values["wide"] = npz_bytes(motioncode=make_code(1, columns=111))
  mock.write()
  talk = Talk(mock.talk / "SeamlessInteractionTalk/data_lmdb")
  assert talk.measure("wide") == (FRAMES, None) and talk.read("wide").voice is None
  for name in others:
    for ask in (talk.measure, talk.read):
      with pytest.raises(InputError, match=f"{name}: motioncode: found .*, expected floats .T, 111 or more"):
        ask(name)


def test_pairs_that_are_none(tmp_path):
  id_of = lambda person, interaction=1, session=1: f"/x/V00_S{session:04d}_I{interaction:08d}_P{person:04d}.npz"
  path = tmp_path / "pairs.json"
  train = [
      ("whole", [id_of(1), id_of(2), 50]), ("piece", ["V00_S1_I1_P1_a.npz", "V00_S1_I1_P2_a.npz", 50, "more"]),
      ("again", [id_of(2), id_of(1), 50]), ("alone", [id_of(1)]), ("text", "x"), ("frames", [id_of(3), id_of(4), "50"]),
      ("none", [id_of(3), id_of(4), 0]), ("true", [id_of(3), id_of(4), True]), ("number", [1, 2, 3]), ("nameless", ["/x/a.npz", id_of(2), 50]),
      ("other", [id_of(1), id_of(2, interaction=2), 50]), ("same", [id_of(1), id_of(1), 50]), ("null", None),
      ("nan", [id_of(5), id_of(6), float("nan")]),
      ("climbs", ["../../etc/passwd", id_of(2), 50]), ("up", ["../../V00_S0009_I1_P1", "V00_S0009_I1_P2", 9]),
  ]  # fmt: skip
  entries = lambda rows: "{" + ",".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in rows) + "}"
  twice = entries([*train, ("twice", [id_of(7), id_of(8), 50]), ("twice", [id_of(7), id_of(8), 60])])
  test = entries([("leak", [id_of(1), id_of(2), 50]), ("dev", [id_of(1, 3), id_of(2, 3), 40])])
  path.write_text(f'{{"train": {twice}, "dev": {test}, "demo": {entries(train)}, "odd": 3}}')
  pairs, skipped = read_pairs(path)
  assert [(pair.name, pair.split, pair.frames) for pair in pairs] == [
      ("V00_S0001_I00000001_P0001_P0002", "train", 50), ("V00_S0001_I00000001_P0007_P0008", "train", 50),
      ("V00_S0001_I00000003_P0001_P0002", "val", 40), ("V00_S0009_I1_P1_P2", "train", 9), ("V00_S1_I1_P1_P2_a", "train", 50),
  ]  # fmt: skip
  assert pairs[0].keys == ("V00_S0001_I00000001_P0001.npz", "V00_S0001_I00000001_P0002.npz") and pairs[3].keys[0] == "V00_S0009_I1_P1"
  assert [pair.whole for pair in pairs] == [True] * 4 + [False]
  kinds = {}
  for skip in skipped:
    kinds.setdefault(skip.kind, []).append(skip.name)
  assert kinds == {
      "an entry that is no [path, path, frames]": ["alone", "text", "frames", "none", "true", "number", "null", "nan"],
      "a name without an id of Seamless Interaction": ["nameless", "climbs"],
      "recordings that are not of two people of one interaction": ["other", "same"],
      "a conversation that is named twice": ["V00_S0001_I00000001_P0002_P0001", "V00_S0001_I00000001_P0007_P0008"],
      "a conversation in two splits": ["V00_S0001_I00000001_P0001_P0002"],
      "a split that is none of train, val, test and ood": ["split 'demo'", "split 'odd'"],
  }


def test_two_recordings_of_one_name_make_one_conversation(tmp_path):
  path = tmp_path / "pairs.json"
  path.write_text(json.dumps({"train": {"a": ["V0_S1_I1_P1.npz", "V0_S1_I1_P2.npz", 9], "b": ["V0_S1_I1_P1.npy", "V0_S1_I1_P2.npy", 9]}}))
  pairs, skipped = read_pairs(path)
  assert [pair.keys for pair in pairs] == [("V0_S1_I1_P1.npz", "V0_S1_I1_P2.npz")]
  assert [skip.kind for skip in skipped] == ["a conversation that is named twice"]


@pytest.mark.parametrize(
    "text, words", [("{", "damaged JSON"), ("[1]", "found list"), ("3", "found int"), ("[" * 100_000, "damaged JSON"), ("", "damaged JSON")]
)
def test_a_pairs_file_that_is_none(tmp_path, text, words):
  path = tmp_path / "pairs.json"
  path.write_text(text)
  with pytest.raises(InputError, match=words) as error:
    read_pairs(path)
  assert "\n" not in str(error.value)


def test_pieces_of_two_times_have_both_in_their_name(tmp_path):
  path = tmp_path / "pairs.json"
  path.write_text(json.dumps({"train": {"a": ["V0_S1_I1_P1_1", "V0_S1_I1_P2_12", 9], "b": ["V0_S1_I1_P1_11", "V0_S1_I1_P2_2", 9]}}))
  pairs, skipped = read_pairs(path)
  assert [pair.name for pair in pairs] == ["V0_S1_I1_P1_11_P2_2", "V0_S1_I1_P1_1_P2_12"] and not skipped


def test_lengths():
  assert check_lengths(60, {"a": 60, "b": 59.2}) == (60, 0)
  assert check_lengths(60, {"a": 62, "b": 55.5}) == (56, 6)
  assert check_lengths(48, {"a": 60}) == (48, 12)
  with pytest.raises(InputError, match="b: frames: found 47, expected 61, as in a"):
    check_lengths(60, {"b": 47, "a": 61})
  with pytest.raises(InputError, match="the pairs' file: frames: found 60, expected 180, as in voice"):
    check_lengths(60, {"motion": 60, "voice": 180})


# --- Tables


def test_relations_are_joined_by_vendor_and_session(world):
  mock, truth = world
  join = join_conversations(mock.talk, mock.seamless)
  assert {joined.name: tuple(joined.relation) for joined in join.conversations} == truth
  assert not join.skipped and join.not_chosen == 0
  joined = {joined.name: joined for joined in join.conversations}["V00_S0006_I00000001_P0007_P0008"]
  assert (joined.split, joined.detail, joined.label, joined.official_split) == ("val", "dating / spouse / partner", "naturalistic", "val")
  assert joined.prompt == {"ipc_a": "ANCP", "ipc_b": "AMCM", "interaction_type": "ipc"}
  other = {joined.name: joined for joined in join.conversations}["V01_S0005_I00000002_P0003_P0004"]
  assert other.prompt == {} and other.detail == "friends"
  assert join.notes == ["1 of 13 people are in several splits, as V01_P0003 in test, train"]


def test_without_tables_relations_are_unknown_or_the_default(world):
  mock, _ = world
  assert {tuple(joined.relation) for joined in join_conversations(mock.talk).conversations} == {(-1, -1)}
  default = join_conversations(mock.talk, default_relation="blood,unknown")
  assert {tuple(joined.relation) for joined in default.conversations} == {(1, -1)}


def test_the_default_is_for_sessions_that_no_table_names(tmp_path):
  mock = Mock(tmp_path)
  for session in ("0001", "0003", "0009"):
    mock.add("train", f"V0{int(session == '0003')}_S{session}")
  mock.write()
  mock.write_tables()
  join = join_conversations(mock.talk, mock.seamless, default_relation="blood,unequal")
  assert [tuple(joined.relation) for joined in join.conversations] == [(1, 1), (1, 0), (-1, -1)]
  assert any(note.startswith("1 sessions are not in relationships.csv") for note in join.notes)


def write_relationships(folder, text, encoding="utf-8"):
  folder.mkdir(exist_ok=True)
  (folder / "relationships.csv").write_text(text, encoding=encoding)
  return folder


def test_forms_of_tables(tmp_path):
  header = "vendor_id,session_id,relationship,relationship_detail\n"
  plain = read_tables(write_relationships(tmp_path / "a", header + "0,12,familiar,siblings\n1,12,familiar,Friends\n"))
  assert {tuple(session): tuple(value.relation) for session, value in plain.related.items()} == {(0, 12): (1, 1), (1, 12): (0, 1)}
  forms = [
      "Session_ID,relationship_detail,Vendor_ID,age\nS0012,siblings,V00,31\n",
      "vendor_id;session_id;relationship;relationship_detail;age\n0,0;12,0;familiar;siblings;31,5\n",
      "vendor_id\tsession_id\trelationship_detail\n00\t0012.0\tsiblings\n",
      "\ufeff" + header + '"0","12","familiar","siblings"\r\n\r\n',
  ]
  for i, text in enumerate(forms):
    for encoding in ("utf-8",) if text[0] == "\ufeff" else ("utf-8", "utf-16"):
      found = read_tables(write_relationships(tmp_path / f"{i}{encoding}", text, encoding)).related
      assert {session: tuple(value.relation) for session, value in found.items()} == {Session(0, 12): (1, 1)}, text
  (tmp_path / "official/assets").mkdir(parents=True)
  write_relationships(tmp_path / "official/assets", header + "0,12,familiar,siblings\n")
  assert Session(0, 12) in read_tables(tmp_path / "official").related


def test_lines_that_cannot_be_read_are_passed_over(tmp_path):
  rows = ["0,1,familiar,siblings", "0,2,5,familiar,friends", "0,3", "V0,Sx,familiar,friends", ",4,familiar,friends", "0,5,stranger,"]
  text = "\n".join(["vendor_id,session_id,relationship,relationship_detail", *rows])
  tables = read_tables(write_relationships(tmp_path / "a", text))
  assert {session.number: tuple(value.relation) for session, value in tables.related.items()} == {1: (1, 1), 5: (-1, -1)}
  assert tables.related[Session(0, 5)].detail == "stranger" and not any("no known word" in note for note in tables.notes)
  place = f"{tmp_path / 'a/relationships.csv'}"
  assert [(skip.name, skip.kind) for skip in tables.skipped] == [
      (f"{place}:3", "a line of a table with another number of values"), (f"{place}:4", "a line of a table with another number of values"),
      (f"{place}:5", "a line of a table without its ids"), (f"{place}:6", "a line of a table without its ids"),
  ]  # fmt: skip


def test_words_that_no_table_knows_and_sessions_of_several_relations(tmp_path):
  rows = ["0,1,familiar,siblings", "0,1,familiar,parent_child", "0,2,familiar,third cousins", "0,3,familiar,friends", "0,3,familiar,friends",
          "0,4,familiar,third cousins"]
  tables = read_tables(write_relationships(tmp_path / "a", "\n".join(["vendor_id,session_id,relationship,relationship_detail", *rows])))
  assert {session.number: tuple(value.relation) for session, value in tables.related.items()} == {1: (1, -1), 2: (-1, -1), 3: (0, 1), 4: (-1, -1)}
  assert [value.detail for value in tables.related.values()] == ["siblings | parent_child", "third cousins", "friends", "third cousins"]
  assert any("'third cousins' (2)" in note for note in tables.notes) and any("1 sessions have several relations" in note for note in tables.notes)


def test_the_users_reading_goes_before_the_table(tmp_path, world):
  mock, truth = world
  (tmp_path / "mapping.csv").write_text("relationship_detail,blood,equal\nFriends,false,unknown\nStranger,FALSE,True\n")
  assert read_mapping(tmp_path / "mapping.csv") == {"friends": (0, -1), "stranger": (0, 1)}
  join = join_conversations(mock.talk, mock.seamless, mapping=tmp_path / "mapping.csv")
  changed = {"V01_S0005_I00000001_P0003_P0004": (0, -1), "V01_S0005_I00000002_P0003_P0004": (0, -1), "V01_S0003_I00000001_P0001_P0002": (0, 1)}
  assert {joined.name: tuple(joined.relation) for joined in join.conversations} == truth | changed
  write_relations(tmp_path / "labels.csv", [RelationLabel("V00_S0001_I00000001_P0001_P0002", np.array([0, 0]))])
  join = join_conversations(mock.talk, mock.seamless, relations=tmp_path / "labels.csv")
  assert {joined.name: tuple(joined.relation) for joined in join.conversations} == truth | {"V00_S0001_I00000001_P0001_P0002": (0, 0)}
  write_relations(tmp_path / "labels.csv", [RelationLabel("V00_S0001_I00000001_P0001_P0003", np.array([0, 0]))])
  with pytest.raises(InputError, match="P0001_P0003"):
    join_conversations(mock.talk, relations=tmp_path / "labels.csv")
  name = "V00_S0001_I00000001_P0001_P0002"
  write_relations(tmp_path / "labels.csv", [RelationLabel(name, np.array([i, 0]), annotator) for i, annotator in enumerate("ab")])
  join = join_conversations(mock.talk, mock.seamless, relations=tmp_path / "labels.csv")
  assert {joined.name: tuple(joined.relation) for joined in join.conversations}[name] == (-1, 0)
  assert any("contradict" in note for note in join.notes)
  for text, words in [("siblings,yes,true", "'yes'"), ("a,true,true\nA,true,true", "once"), (",true,true", "once")]:
    (tmp_path / "mapping.csv").write_text(f"relationship_detail,blood,equal\n{text}\n")
    with pytest.raises(InputError, match=words):
      read_mapping(tmp_path / "mapping.csv")


def test_the_table_holds_no_more_than_is_sure():
  assert {detail for detail, (blood, _) in RELATIONS.items() if blood == 1} == {"siblings", "parent_child", "family_generic"}
  assert RELATIONS["siblings"] == (1, 1) and RELATIONS["parent_child"] == (1, 0) and RELATIONS["family_generic"] == (1, -1)
  assert RELATIONS["coworkers"] == (0, -1) and RELATIONS["stranger"] == RELATIONS["familiar_generic"] == (-1, -1)
  assert all(RELATIONS[detail] == (0, 1) for detail in ("friends", "classmates", "roommates", "neighbors", "dating_spouse_partner"))


def test_another_relationships_table_is_one_line_and_other_tables_stop_nothing(tmp_path):
  with pytest.raises(InputError, match="columns.*expected a csv with the columns vendor_id, session_id, relationship_detail"):
    read_tables(write_relationships(tmp_path / "a", "vendor,session,relation\n0,1,siblings\n"))
  folder = write_relationships(tmp_path / "b", "vendor_id,session_id,relationship_detail\n0,1,siblings\n")
  (folder / "participants.csv").write_text("who\n1\n")
  (folder / "filelist.csv").write_bytes(b"\xff\xfe\x00")
  (folder / "interactions.csv").write_text("")
  tables = read_tables(folder)
  assert len(tables.related) == 1 and tables.people is None and not tables.files and not tables.prompts
  assert len([note for note in tables.notes if note.startswith("not used: ")]) == 3
  missing = [note.rpartition(" ")[2] for note in read_tables(tmp_path).notes]
  assert missing == ["relationships.csv", "interactions.csv", "participants.csv", "filelist.csv"]
  with pytest.raises(InputError, match="no such folder"):
    read_tables(tmp_path / "absent")


# --- Official files


def test_files_and_shards_are_found_and_read_in_place(world):
  mock, _ = world
  recordings = Recordings(mock.seamless)
  assert recordings.shards == 1 and not recordings.skipped and len(recordings.places) == 5
  for name in recordings.places:
    file_id = parse_file_id(name)
    speech = recordings.read_speech(file_id)
    truth = seamless_mock.speech_of(name)
    assert (speech.vad, speech.transcript, speech.skipped) == (truth["metadata:vad"], truth["metadata:transcript"], [])
    voice = recordings.read_voice(file_id)
    tone = 0.3 * np.sin(2 * np.pi * (150 + 30 * mock.seeds[name]) * np.arange(FRAMES * 640) / 16000)
    assert voice.shape == tone.shape and np.abs(voice - tone)[500:-500].max() < 1e-3
    arrays, damaged = recordings.read_arrays(file_id, ["movement:is_valid", "smplh:translation", "absent"])
    assert set(arrays) == {"movement:is_valid", "smplh:translation"} and arrays["smplh:translation"].shape == (72, 3) and not damaged
  nobody = parse_file_id("V09_S1_I1_P1")
  assert recordings.read_voice(nobody) is None and recordings.read_arrays(nobody, ["a"]) == ({}, [])
  assert recordings.read_speech(nobody).vad is None
  some = Recordings(mock.seamless, {"V00_S0006_I00000001_P0007"})
  assert list(some.places) == ["V00_S0006_I00000001_P0007"]


def test_the_buckets_own_tree(tmp_path):
  mock = Mock(tmp_path)
  name = "V00_S0001_I00000001_P0001"
  mock.seeds[name] = 1
  root = tmp_path / "seamless/improvised/dev"
  for folder in ("audio", "video", "metadata/vad", "transcript", "1P-IS", "movement/expression"):
    (root / folder).mkdir(parents=True)
  seamless_mock.write_wav(root / f"audio/{name}.wav", 1)
  (root / f"video/{name}.mp4").write_bytes(b"film")
  (root / f"metadata/vad/{name}.jsonl").write_text('{"start": 0, "end": 1}\n\n{"start": 2, "end": 2.5}\n')
  (root / f"transcript/{name}.jsonl").write_text('{"words": []}\n')
  (root / f"1P-IS/{name}.json").write_text("[]")
  (root / f"movement/expression/{name}.npy").write_bytes(b"x")
  recordings = Recordings(tmp_path / "seamless")
  assert set(recordings.places[name]) == {"wav", "mp4", "vad", "transcript"} and not recordings.skipped
  speech = recordings.read_speech(parse_file_id(name))
  assert speech.vad == [{"start": 0, "end": 1}, {"start": 2, "end": 2.5}] and speech.transcript == [{"words": []}]


@pytest.mark.parametrize("text, kept", [
    ("{", None), ("[]", None), ('{"metadata:vad": {}}', None), ('{"metadata:vad": [3]}', None), ('{"metadata:vad": [{"start": 2, "end": 1}]}', None),
    ('{"metadata:vad": [{"start": "0", "end": 1}]}', None), ('{"metadata:vad": [{"start": NaN, "end": 1}]}', None),
    ('{"metadata:vad": [{"start": -1, "end": 1}]}', None), ('{"metadata:vad": [{"end": 1}]}', None), ('{"metadata:vad": []}', []),
    ("{}", None), ('{"metadata:vad": null}', None),
])  # fmt: skip
def test_speech_that_is_damaged_is_named(tmp_path, text, kept):
  name = "V00_S0001_I00000001_P0001"
  (tmp_path / f"{name}.json").write_text(text)
  speech = Recordings(tmp_path).read_speech(parse_file_id(name))
  assert speech.vad == kept and speech.transcript is None
  assert len(speech.skipped) == (0 if kept == [] or text in ("{}", '{"metadata:vad": null}') else 1)


def test_names_that_lead_out_of_the_folder(tmp_path):
  mock = Mock(tmp_path / "mock")
  inside, outside = "V00_S0001_I00000001_P0001", "V00_S0001_I00000001_P0002"
  mock.seeds |= {inside: 1, outside: 2}
  path = mock.write_shard([inside], "train/0000.tar", [(f"../{outside}.json", b"{}"), (f"/tmp/{outside}.wav", b""), (f"a/../../{outside}.mp4", b"")])
  with tarfile.open(path, "a") as archive:
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE):
      member = tarfile.TarInfo(f"{outside}.wav")
      member.type, member.linkname = kind, "/etc/passwd"
      archive.addfile(member)
  (tmp_path / f"{outside}.wav").write_bytes(b"not yours")
  (mock.seamless / f"{outside}.wav").symlink_to(tmp_path / f"{outside}.wav")
  (mock.seamless / "out").symlink_to(tmp_path)
  (mock.seamless / "round").symlink_to(mock.seamless)
  recordings = Recordings(mock.seamless)
  assert list(recordings.places) == [inside] and set(recordings.places[inside]) == {"wav", "mp4", "json", "npz"}
  kinds = [skip.kind for skip in recordings.skipped]
  assert kinds.count("a name that leads out of the folder") == 3 and kinds.count("no plain file in a shard") == 3
  assert kinds.count("a link that leads out of the folder") == 2 and len(kinds) == 8


def test_a_link_within_the_folder_is_followed(tmp_path):
  name = "V00_S0001_I00000001_P0001"
  (tmp_path / "a").mkdir()
  (tmp_path / "blob").write_text('{"metadata:vad": []}')
  (tmp_path / f"a/{name}.json").symlink_to(tmp_path / "blob")
  assert Recordings(tmp_path).read_speech(parse_file_id(name)).vad == []


def test_the_first_of_two_files_is_kept(tmp_path):
  name = "V00_S0001_I00000001_P0001"
  for folder, text in (("a", "[]"), ("b", '[{"start": 1, "end": 2}]')):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / f"{name}.json").write_text(f'{{"metadata:vad": {text}}}')
  recordings = Recordings(tmp_path)
  assert recordings.read_speech(parse_file_id(name)).vad == []
  ((skip),) = recordings.skipped
  assert skip == Skip(str(tmp_path / f"b/{name}.json"), "a file of a name that is there already", f"as {tmp_path / f'a/{name}.json'}")


def test_damaged_shards_are_read_up_to_there(tmp_path):
  mock = Mock(tmp_path)
  names = [f"V00_S0001_I00000001_P{i:04d}" for i in range(4)]
  mock.seeds |= {name: i for i, name in enumerate(names)}
  whole = mock.write_shard(names, "whole.tar").read_bytes()
  (tmp_path / "seamless/whole.tar").unlink()
  path = tmp_path / "seamless/0000.tar"
  with_damage = 0
  for size in range(0, len(whole) - 10240, len(whole) // 30):
    path.write_bytes(whole[:size])
    recordings = Recordings(tmp_path / "seamless")
    (skip,) = recordings.skipped
    assert skip.kind == "a damaged shard, read up to there" and str(path) in skip.detail and "\n" not in skip.detail
    assert all(place.offset + place.size <= size for places in recordings.places.values() for place in places.values())
    with_damage += len(recordings.places) > 0
  assert with_damage > 15
  headers = [i for i in range(0, len(whole), 512) if whole[i + 257 : i + 262] == b"ustar"]
  for place, value in [
      (headers[4] + 124, b"77777777777\0"), (headers[4] + 124, b"\xff" * 12), (headers[6] + 148, b"1234567\0"), (headers[4] + 156, b"g"),
      (headers[5] + 156, b"L"), (headers[4], b"\0" * 512),
  ]:  # fmt: skip
    data = bytearray(whole)
    data[place : place + len(value)] = value
    if place in (headers[4] + 124, headers[4] + 156, headers[5] + 156):  # With a checksum that fits, so that it is believed.
      start = place - place % 512
      data[start + 148 : start + 156] = b" " * 8
      data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    path.write_bytes(data)
    recordings = Recordings(tmp_path / "seamless")
    assert 0 < len(recordings.places) < 5
    if place % 512 != 156:  # A file of another type is a whole shard's, too.
      assert [skip.kind for skip in recordings.skipped] == ["a damaged shard, read up to there"], place
  path.write_bytes(whole[: headers[4]] + bytes(2 << 20) + whole[headers[4] :])
  assert [skip.kind for skip in Recordings(tmp_path / "seamless").skipped] == ["a damaged shard, read up to there"]
  path.write_bytes(b"no tar at all" * 100)
  assert [skip.kind for skip in Recordings(tmp_path / "seamless").skipped] == ["a damaged shard, read up to there"]


def test_a_header_without_bounds_is_not_read(tmp_path):
  member = tarfile.TarInfo("././@LongLink")
  member.type, member.size = tarfile.GNUTYPE_LONGNAME, 64 << 20
  path = tmp_path / "0000.tar"
  path.write_bytes(member.tobuf(tarfile.GNU_FORMAT))
  os.truncate(path, (64 << 20) + 20480)
  ((skip),) = Recordings(tmp_path).skipped
  assert "a header of 67108864 bytes" in skip.detail


def test_arrays_that_only_a_pickle_holds_are_named(tmp_path):
  name = "V00_S0001_I00000001_P0001"
  (tmp_path / f"{name}.npz").write_bytes(seamless_mock.pickled_bytes(good=np.ones(3)))
  arrays, damaged = Recordings(tmp_path).read_arrays(parse_file_id(name), ["good", "motioncode"])
  assert list(arrays) == ["good"] and len(damaged) == 1 and "motioncode" in damaged[0].detail
  (tmp_path / f"{name}.npz").write_bytes(b"PK nonsense")
  arrays, damaged = Recordings(tmp_path).read_arrays(parse_file_id(name), ["good"])
  assert arrays == {} and len(damaged) == 1


# --- Both together


FAULTS = {
    # Values of the two people; words of the reason.
    "missing partner": (("whole", None), "a recording that is not in the LMDB"),
    "no motion": (("whole", npz_bytes(audio=make_voice(1), motion=make_code(1))), "a recording that cannot be read"),
    "no voice": (("whole", npz_bytes(motioncode=make_code(1))), "a recording without a voice"),
    "pickled": (("whole", seamless_mock.pickled_bytes(audio=make_voice(1))), "a recording that cannot be read"),
    "bomb": (("whole", seamless_mock.bomb_bytes(audio=make_voice(1))), "a recording that cannot be read"),
    "no npz": (("whole", b"\x89HDF\r\n" + bytes(900)), "a recording that cannot be read"),
    "empty": (("whole", b""), "a recording that cannot be read"),
    "cut off": (("whole", npz_bytes(audio=make_voice(1), motioncode=make_code(1))[:-300]), "a recording that cannot be read"),
    "48 kHz": (("whole", npz_bytes(audio=make_voice(1, 3 * FRAMES * 640), motioncode=make_code(1))), "recordings of other lengths"),
    "narrow": (("whole", npz_bytes(audio=make_voice(1), motioncode=make_code(1, columns=110))), "a recording that cannot be read"),
    "flat": (("whole", npz_bytes(audio=make_voice(1), motioncode=make_code(1)[0])), "a recording that cannot be read"),
    "short": (("whole", npz_bytes(audio=make_voice(1), motioncode=make_code(1, FRAMES - 20))), "recordings of other lengths"),
    "integers": (("whole", npz_bytes(audio=make_voice(1), motioncode=np.zeros((FRAMES, 112), int))), "a recording that cannot be read"),
}


def test_each_fault_is_passed_over_and_named(tmp_path):
  mock = Mock(tmp_path)
  good = [mock.add("train", "V00_S0001"), mock.add("test", "V00_S0002")]
  faulty = {}
  for i, (fault, (values, kind)) in enumerate(FAULTS.items()):
    faulty[mock.add("train", "V00_S0003", interaction=f"{i:08d}", values=values)] = fault, kind
  mock.pairs["train"]["wrong"] = ["/x/nobody.npz", "/x/else.npz", 60]
  mock.write()
  join = join_conversations(mock.talk)
  assert [joined.name for joined in join.conversations] == good
  assert skips(join) == {name: kind for name, (_, kind) in faulty.items()} | {"wrong": "a name without an id of Seamless Interaction"}
  for name, (fault, _) in faulty.items():
    (skip,) = [skip for skip in join.skipped if skip.name == name]
    assert skip.detail and "\n" not in skip.detail, fault
  source = load_seamless(mock.talk, "test")
  assert source.names == [f"{good[1]}_speaker1", f"{good[1]}_speaker2"]
  text = "\n".join(source.report("test"))
  assert "zero mean" in text and "first 50" in text and "expressions are flame2020's, by what UniLS-Talk says of itself" in text


def test_damage_that_headers_do_not_show_is_taken_out_when_it_is_met(tmp_path):
  mock = Mock(tmp_path)
  names = [mock.add("train", f"V00_S000{i}") for i in range(1, 5)]
  key = f"{ids_of(names[2])[1]}.npz"
  broken = bytearray(npz_bytes(audio=make_voice(9), motioncode=np.random.default_rng(0).normal(size=(FRAMES, 112)).astype(np.float32)))
  broken[len(broken) // 2 + 9000] ^= 0xFF
  mock.values[key] = bytes(broken)
  nan = make_code(3)
  nan[7, 3] = np.nan
  mock.values[f"{ids_of(names[1])[0]}.npz"] = npz_bytes(audio=make_voice(3), motioncode=nan)
  quiet = npz_bytes(audio=0 * make_voice(3), motioncode=make_code(3))
  mock.values |= {f"{name}.npz": quiet for name in ids_of(names[3])}
  mock.pairs["val"] = {"a": ["V09_S0001_I1_P1", "V09_S0001_I1_P2", 9]}
  mock.write()
  source = load_seamless(mock.talk, "train")
  assert len(source) == 8
  with pytest.raises(InputError, match="motioncode, frame 7"):
    source[source.names.index(f"{names[1]}_speaker2")]
  assert [conversation.name for conversation in source] == [f"{names[0]}_speaker1", f"{names[0]}_speaker2"] == source.names
  assert len(source) == len(list(source.motions())) == len(list(source)) == 2
  assert sorted(name for name, _ in source.skipped if name in names) == names[1:]
  again = load_seamless(mock.talk, "train")
  assert len(list(again.motions())) == 2 and again.names == source.names
  for key in ids_of(names[0]):
    mock.values[f"{key}.npz"] = bytes(broken)
  shutil.rmtree(mock.talk)
  mock.write()
  source = load_seamless(mock.talk, "train")
  with pytest.raises(InputError, match="conversations: found none that can be read"):
    list(source)
  assert len(source) == 0


def test_damage_is_passed_over_when_it_is_written(tmp_path):
  mock = Mock(tmp_path)
  names = [mock.add("train", f"V00_S000{i}") for i in range(1, 3)]
  nan = make_code(3)
  nan[7, 3] = np.nan
  mock.values[f"{ids_of(names[1])[1]}.npz"] = npz_bytes(audio=make_voice(3), motioncode=nan)
  mock.pairs["val"] = {"a": ["V09_S0001_I1_P1", "V09_S0001_I1_P2", 9]}
  mock.values["V09_S0002_I1_P1"] = b"single"
  mock.write()
  report = write_conversations(join_conversations(mock.talk, find_recordings=True), tmp_path / "out")
  assert report["notes"] == ["1 recordings of the LMDB are in no pair"]
  assert report["written"] == 1 and {skip["name"] for skip in report["skipped"]} >= set(names[1:])
  files = [f"{names[0]}_speaker{n}.{kind}" for n in (1, 2) for kind in ("npz", "wav")]
  assert sorted(path.name for path in (tmp_path / "out/train").iterdir()) == files


def test_a_voice_that_the_lmdb_lacks_is_the_official_one(tmp_path):
  mock = Mock(tmp_path)
  voiceless = npz_bytes(motioncode=make_code(5))
  name = mock.add("train", "V00_S0001", values=(voiceless, "whole"))
  shard = mock.add("train", "V00_S0002", values=("whole", voiceless))
  piece = mock.add("train", "V00_S0003", rest="_0", values=("whole", voiceless))
  other = mock.add("train", "V00_S0004", values=(voiceless, "whole"))
  mock.seeds["V00_S0003_I00000001_P0002"] = 3
  mock.write()
  mock.write_tables()
  mock.write_files([ids_of(name)[0], "V00_S0003_I00000001_P0002"])
  mock.write_shard([ids_of(shard)[1]])
  folder = mock.write_files([ids_of(other)[0]], "improvised/train/0000/0001")
  (folder / f"{ids_of(other)[0]}.wav").write_bytes(b"RIFF")
  join = join_conversations(mock.talk, mock.seamless)
  assert [joined.name for joined in join.conversations] == [name, shard]
  assert skips(join) == {piece: "a recording without a voice", other: "a recording that cannot be read"}
  for joined, speaker, file_id in ((join.conversations[0], 0, ids_of(name)[0]), (join.conversations[1], 1, ids_of(shard)[1])):
    tone = 0.3 * np.sin(2 * np.pi * (150 + 30 * mock.seeds[file_id]) * np.arange(FRAMES * 640) / 16000)
    assert np.abs(join.read(joined)[speaker].voice - tone)[500:-500].max() < 1e-3


def test_subsets(world):
  mock, truth = world
  names = lambda **options: [joined.name for joined in join_conversations(mock.talk, mock.seamless, **options).conversations]
  assert names() == sorted(truth)
  assert names(splits=("val", "test")) == ["V00_S0006_I00000001_P0007_P0008", "V01_S0007_I00000001_P0003_P0009"]
  assert names(selection=Selection(("V01",))) == sorted(name for name in truth if name.startswith("V01"))
  assert names(selection=Selection(("V1_S5", "V00_S0002"))) == sorted(name for name in truth if "S0005" in name or "S0002" in name)
  one_each = ["V00_S0001_I00000001_P0001_P0002", "V00_S0006_I00000001_P0007_P0008", "V01_S0007_I00000001_P0003_P0009"]
  assert names(selection=Selection(count=1)) == one_each
  assert join_conversations(mock.talk, selection=Selection(("V01",), 2)).not_chosen == 5
  with pytest.raises(InputError, match="V00_S0809"):
    names(selection=Selection(("session 5",)))
  with pytest.raises(InputError, match="no conversation that can be served .8 pairs"):
    names(selection=Selection(("V09",)))
  assert present_seamless_splits(mock.talk) == ["train", "val", "test"]
  assert present_seamless_splits(mock.talk, Selection(("V01",))) == ["train", "test"]


def test_sessions_are_held_out_where_there_is_no_val(tmp_path):
  mock = Mock(tmp_path)
  for session in range(1, 7):
    for interaction in ("00000001", "00000002"):
      mock.add("train", f"V00_S{session:04d}", interaction=interaction)
  mock.write()
  assert present_seamless_splits(mock.talk) == ["train", "val"]
  train, val = (load_seamless(mock.talk, split).names for split in ("train", "val"))
  assert len(val) == 4 and len(train) == 20 and not {name[:9] for name in train} & {name[:9] for name in val}
  assert load_seamless(mock.talk, "val").names == val
  one = Mock(tmp_path / "one")
  one.add("train", "V00_S0001")
  one.write()
  assert present_seamless_splits(one.talk) == ["train"]


def test_what_is_no_unils_talk_is_one_line(tmp_path):
  for folder in (tmp_path, tmp_path / "absent"):
    with pytest.raises(InputError, match="SeamlessInteractionTalk"):
      join_conversations(folder)
  mock = Mock(tmp_path / "mock")
  mock.add("train", "V00_S0001")
  mock.write()
  with pytest.raises(InputError, match="split"):
    load_seamless(mock.talk, "dev")
  with pytest.raises(InputError, match="no conversation that can be served"):
    load_seamless(mock.talk, "test")
  data = mock.talk / "SeamlessInteractionTalk/data_lmdb/data.mdb"
  os.truncate(data, 8192)
  with pytest.raises(InputError, match="cut off"):
    join_conversations(mock.talk)


# --- Written


def read_csv(path):
  with open(path, newline="") as file:
    return list(csv.DictReader(file))


def test_written_conversations_are_those_in_place(tmp_path, world):
  mock, truth = world
  join = join_conversations(mock.talk, mock.seamless, find_recordings=True)
  report = write_conversations(join, tmp_path / "out", videos="copy", arrays=["movement:is_valid", "absent"])
  assert report == json.loads((tmp_path / "out/report.json").read_text())
  assert (report["conversations"], report["written"], report["there"], report["splits"]) == (8, 8, 0, {"train": 6, "val": 1, "test": 1})
  assert report["relations"] == {"non_blood,equal": 3, "blood,equal": 1, "blood,unequal": 1, "unknown": 1, "non_blood,unknown": 1, "blood,unknown": 1}
  assert report["details"]["friends"] == 2 and report["people"] == 13 and report["people_in_several_splits"] == {"V01_P0003": ["test", "train"]}
  assert report["seconds"] == {"all": 8 * 2.4, "shortest": 2.4, "median": 2.4, "longest": 2.4}
  assert report["beside"] == {"recordings with speech": 5, "recordings with video": 5, "recordings with arrays": 5}
  assert report["basis"] == "flame2020" and "zero mean" in report["pose"]
  assert {name: tuple(relation) for name, relation in read_relations(tmp_path / "out/relations.csv").items()} == truth
  people = {row["conversation"]: (row["speaker1"], row["speaker2"]) for row in read_csv(tmp_path / "out/people.csv")}
  assert people.keys() == truth.keys() and people["V01_S0007_I00000001_P0003_P0009"] == ("V01_P0003", "V01_P0009")
  rows = {row["conversation"]: row for row in read_csv(tmp_path / "out/conversations.csv")}
  assert rows["V00_S0006_I00000001_P0007_P0008"] == dict(
      conversation="V00_S0006_I00000001_P0007_P0008", split="val", frames="60", speaker1="V00_P0007", speaker2="V00_P0008",
      relationship_detail="dating / spouse / partner", label="naturalistic", official_split="val", ipc_a="ANCP", ipc_b="AMCM", interaction_type="ipc",
  )  # fmt: skip
  for split in ("train", "val", "test"):
    place, written = load_seamless(mock.talk, split, seamless=mock.seamless), load_dualtalk(tmp_path / "out", split)
    assert place.names == written.names and written.skipped == []
    for a, b in zip(place, written, strict=True):
      assert a.name == b.name and a.relation.tolist() == b.relation.tolist() and a.basis == "flame2020"
      for key in ("speech_a", "motion_a", "speech_b", "motion_b"):
        np.testing.assert_array_equal(getattr(a, key), getattr(b, key))
    for a, b in zip(place.motions(), written.motions(), strict=True):
      assert all(np.array_equal(x, y) for x, y in zip(a, b))
  speech = json.loads((tmp_path / "out/speech/val/V00_S0006_I00000001_P0007_P0008_speaker2.json").read_text())
  assert speech["id"] == "V00_S0006_I00000001_P0008" and speech["vad"] == [{"start": 0.5, "end": 1.25}]
  assert speech["transcript"][0]["words"][0]["word"] == "hällo"
  assert (tmp_path / "out/video/val/V00_S0006_I00000001_P0007_P0008_speaker1.mp4").read_bytes() == b"film of V00_S0006_I00000001_P0007"
  with np.load(tmp_path / "out/arrays/val/V00_S0006_I00000001_P0007_P0008_speaker1.npz") as arrays:
    assert list(arrays) == ["movement:is_valid"]
  with np.load(tmp_path / "out/train/V00_S0001_I00000001_P0001_P0002_speaker2.npz") as motion:
    code = make_code(mock.seeds["V00_S0001_I00000001_P0002"])
    np.testing.assert_array_equal(motion["exp"], code[:, :50])
    np.testing.assert_array_equal(motion["pose"][:, :4], code[:, 100:104])
    assert (motion["pose"][:, 4:] == 0).all() and motion["basis"] == "flame2020"


def test_directions_are_the_right_way_round(world):
  mock, _ = world
  source = load_seamless(mock.talk, "test")
  seeds = [mock.seeds[name] for name in ids_of("V01_S0007_I00000001_P0003_P0009")]
  for item, own, partner in ((source[0], seeds[0], seeds[1]), (source[1], seeds[1], seeds[0])):
    np.testing.assert_array_equal(item.motion_b[:, :50], make_code(own)[:, :50])
    np.testing.assert_array_equal(item.motion_a[:, :50], make_code(partner)[:, :50])
    np.testing.assert_array_equal(item.speech_b, make_voice(own))
    np.testing.assert_array_equal(item.speech_a, make_voice(partner))
  assert [item.name[-8:] for item in source] == ["speaker1", "speaker2"]
  for (a, b, _), item in zip(source.motions(), source):
    assert np.array_equal(a, item.motion_a) and np.array_equal(b, item.motion_b)
  assert [item.name for item in grain.MapDataset.source(source)] == source.names
  again = pickle.loads(pickle.dumps(source))
  assert again.names == source.names and np.array_equal(again[1].motion_b, source[1].motion_b)


def test_lengths_that_differ_a_little_are_trimmed(tmp_path):
  mock = Mock(tmp_path)
  name = mock.add("test", "V00_S0001", frames=58, values=("whole", npz_bytes(audio=make_voice(2, 57 * 640 + 100), motioncode=make_code(2, 63))))
  mock.write()
  source = load_seamless(mock.talk, "test")
  assert source.trimmed == [(f"{name}_speaker1", 5), (f"{name}_speaker2", 5)] and "trimmed by 10 frames" in source.summary()
  assert len(source[0].motion_a) == len(source[0].motion_b) == 57 + 1 == 58
  np.testing.assert_array_equal(source[1].speech_b, np.pad(make_voice(2, 57 * 640 + 100), (0, 540)))
  np.testing.assert_array_equal(source[1].speech_a, make_voice(1)[: 58 * 640])
  report = write_conversations(join_conversations(mock.talk), tmp_path / "out")
  assert report["trimmed"] == {"conversations": 1, "frames": 5}
  assert np.array_equal(load_dualtalk(tmp_path / "out", "test")[1].speech_b, source[1].speech_b)


def test_writing_goes_on_where_it_was_stopped(tmp_path, world):
  mock, truth = world
  out = tmp_path / "out"
  join = lambda **options: join_conversations(mock.talk, mock.seamless, find_recordings=True, **options)

  def stop_after_three(conversations):
    yield from list(conversations)[:3]
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    write_conversations(join(), out, progress=stop_after_three)
  assert len(read_relations(out / "relations.csv")) == 3 and not list(out.rglob("*.tmp"))
  assert len(load_dualtalk(out, "train")) > 0
  kept = {path: path.stat().st_mtime_ns for path in out.rglob("*_speaker*.???")}
  (out / "train/V00_S0002_I00000001_P0003_P0004_speaker2.npz").unlink()  # As a kill between two files leaves it.
  report = write_conversations(join(), out)
  assert (report["written"], report["there"]) == (6, 2)
  audio.write_wav(out / "train/V00_S0004_I00000001_P0005_P0006_speaker1.wav", np.ones(16000, np.float32))  # Of another version.
  os.truncate(out / "test/V01_S0007_I00000001_P0003_P0009_speaker2.wav", 900)
  report = write_conversations(join(), out)
  assert (report["written"], report["there"]) == (2, 6) and len(load_dualtalk(out, "test")) == 2
  path = out / "train/V00_S0001_I00000001_P0001_P0002_speaker1.wav"
  assert path.stat().st_mtime_ns == kept[path] and set(read_relations(out / "relations.csv")) == set(truth)
  assert {row["conversation"] for row in read_csv(out / "people.csv")} == set(truth)
  assert write_conversations(join(), out)["there"] == 8


def test_other_conversations_and_other_peoples_labels_stay(tmp_path, world):
  mock, truth = world
  out = tmp_path / "out"
  write_conversations(join_conversations(mock.talk, mock.seamless, splits=("test",)), out)
  name = "V01_S0007_I00000001_P0003_P0009"
  labels = read_labels(out / "relations.csv")
  assert [(label.conversation, label.annotator) for label in labels] == [(name, "relationships.csv")]
  write_relations(out / "relations.csv", [*labels, RelationLabel(name, np.array([1, 0]), "ann", 0.5)])
  write_conversations(join_conversations(mock.talk, mock.seamless, splits=("train",)), out)
  write_conversations(join_conversations(mock.talk, mock.seamless, splits=("test",)), out)
  labels = {(label.conversation, label.annotator): tuple(label.relation) for label in read_labels(out / "relations.csv")}
  assert labels[name, "ann"] == (1, 0) and labels[name, "relationships.csv"] == (1, -1) and len(labels) == 8
  assert {row["conversation"] for row in read_csv(out / "conversations.csv")} == {n for n in truth if "S0006" not in n}
  (out / "relations.csv").write_text("conversation,relation\na,b\n")
  before = sorted(out.rglob("*"))
  with pytest.raises(InputError, match="relations.csv"):
    write_conversations(join_conversations(mock.talk, splits=("val",)), out)
  assert sorted(out.rglob("*")) == before


def test_videos(tmp_path, world):
  mock, _ = world
  seamless = tmp_path / "seamless"
  shutil.copytree(mock.seamless, seamless)
  out = tmp_path / "out"
  assert not (out / "video").exists()
  write_conversations(join_conversations(mock.talk, seamless, find_recordings=True), out)
  assert not (out / "video").exists()
  report = write_conversations(join_conversations(mock.talk, seamless, find_recordings=True), out, videos="link")
  link = out / "video/train/V00_S0001_I00000001_P0001_P0002_speaker2.mp4"
  assert link.is_symlink() and link.read_bytes() == b"film of V00_S0001_I00000001_P0002"
  assert report["beside"]["recordings with video"] == 5
  inside = out / "video/val/V00_S0006_I00000001_P0007_P0008_speaker2.mp4"
  assert not inside.is_symlink() and inside.read_bytes() == b"film of V00_S0006_I00000001_P0008"
  shutil.rmtree(out / "video")
  join = join_conversations(mock.talk, seamless, find_recordings=True)
  (shard,) = seamless.rglob("*.tar")
  os.truncate(shard, 20_000)
  report = write_conversations(join, out, videos="copy")
  assert "a video that cannot be read" in report["skipped_by_kind"] and not inside.exists() and not list(out.rglob("*.tmp"))
  assert link.read_bytes() == b"film of V00_S0001_I00000001_P0002" and not link.is_symlink()


def test_pieces_have_no_speech_beside_them(tmp_path):
  mock = Mock(tmp_path)
  name = mock.add("train", "V00_S0001", rest="_0007")
  mock.seeds["V00_S0001_I00000001_P0001"] = 1
  mock.write()
  mock.write_tables()
  mock.write_files(["V00_S0001_I00000001_P0001"])
  report = write_conversations(join_conversations(mock.talk, mock.seamless, find_recordings=True), tmp_path / "out", videos="copy")
  assert name == "V00_S0001_I00000001_P0001_P0002_0007" and (tmp_path / f"out/train/{name}_speaker1.wav").is_file()
  assert not (tmp_path / "out/speech").exists() and not (tmp_path / "out/video").exists()
  assert report["beside"] == {"pieces, whose speech and video are not theirs alone": 1} and report["relations"] == {"blood,equal": 1}


def prepare(mock, out, say=lambda _: None, **options):
  defaults = dict(talk=str(mock.talk), seamless=str(mock.seamless), splits=[], subset=[], count=0, mapping=None, videos="none", arrays=[])
  prepare_conversations(**(defaults | dict(out=str(out)) | options), say=say)


def test_the_command_says_what_it_made(tmp_path, world):
  mock, _ = world
  lines = []
  prepare(mock, tmp_path / "out", lines.append, splits=["train", "test"], subset=["V00", "V01_S0007"])
  text = "\n".join(lines)
  assert "4 conversations, 0.2 minutes of two people: 4 written, 0 there already" in text and "4 conversations were not asked for" in text
  said = ("1 blood,unequal", "1 parent_child", "2.4 s to 2.4 s", "basis flame2020", "zero mean", "3 recordings with speech")
  for words in (*said, "3 train, 1 test; 8 people"):
    assert words in text, text
  for options, words in [
      (dict(splits=["dev"]), "--splits: found 'dev'"), (dict(seamless=None, videos="copy"), "--videos: found copy, expected --seamless"),
      (dict(seamless=None, mapping="m.csv"), "--mapping"), (dict(seamless=None, arrays=["a"]), "--arrays"),
      (dict(out=str(mock.talk / "out")), "--out.*not in --talk"), (dict(out=str(mock.seamless)), "--out.*not in --seamless"),
      (dict(subset=["x"]), "subset"), (dict(talk=str(tmp_path / "absent")), "SeamlessInteractionTalk"),
      (dict(mapping=str(tmp_path / "absent.csv")), "absent.csv"),
  ]:  # fmt: skip
    with pytest.raises(InputError, match=words) as error:
      prepare(mock, options.pop("out", tmp_path / "out2"), **options)
    assert "\n" not in str(error.value) and not (tmp_path / "out2").exists()


def test_a_table_in_another_order_of_bytes(tmp_path, world):
  """`struct` says little-endian everywhere; a page of zeros at the end of a database is no page of it."""
  mock, _ = world
  folder = tmp_path / "unils/SeamlessInteractionTalk"
  shutil.copytree(mock.talk / "SeamlessInteractionTalk", folder)
  with open(folder / "data_lmdb/data.mdb", "ab") as file:
    file.write(struct.pack("<Q", 0) * 1024)
  assert len(join_conversations(tmp_path / "unils").conversations) == 8
