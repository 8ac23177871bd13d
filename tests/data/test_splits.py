"""Splits: nobody in two of them, shares met, the same for a seed, written whole or not at all."""

import collections
import json
import os

import numpy as np
import pytest

import tiny_world
from rsatalker_jax.data.dualtalk import find_clips, load_dualtalk
from rsatalker_jax.data.people import Speakers, read_people
from rsatalker_jax.data.relations import read_labels
from rsatalker_jax.data.splits import check_leaks, find_components, make_splits, parse_fractions, write_splits
from rsatalker_jax.errors import InputError

SHARES = {"train": 0.7, "val": 0.1, "test": 0.1, "ood": 0.1}


def chain(*pairs):
  """Conversations c0, c1, ... of pairs of people."""
  return {f"c{i}": Speakers(first, second) for i, (first, second) in enumerate(pairs)}


def test_components_are_joined_by_people_and_recordings():
  people = chain(("a", "b"), ("c", "d"), ("b", "c"), ("e", ""), ("", "f"), ("", ""))
  names = [*people, "v_sub_video_0", "v_sub_video_1", "w_sub_video_0"]
  people |= {"v_sub_video_1": Speakers("x", "y"), "w_sub_video_0": Speakers("e", "z")}
  assert find_components(names, people) == [
      ["c0", "c1", "c2"], ["c3", "w_sub_video_0"], ["c4"], ["c5"], ["v_sub_video_0", "v_sub_video_1"]]  # fmt: skip
  assert find_components(names, people, by="conversation") == [
      ["c0"], ["c1"], ["c2"], ["c3"], ["c4"], ["c5"], ["v_sub_video_0", "v_sub_video_1"], ["w_sub_video_0"]]  # fmt: skip


def random_data(seed, pairs=300, people=400, sources=0):
  """Random acquaintances: components of many sizes; with sources, people of one of them."""
  rng = np.random.default_rng(seed)
  table, seconds = {}, {}
  for i in range(pairs):
    first, second = rng.choice(people, 2, replace=False)
    source = f"S{i % sources}" if sources else ""
    table[f"c{i}"] = Speakers(f"{source}p{first}", f"{source}p{second}", source)
    seconds[f"c{i}"] = float(rng.uniform(5, 60))
  return seconds, table


def reached(seconds, splits):
  total = collections.Counter()
  for name, split in splits.items():
    total[split] += seconds[name]
  return {split: value / sum(seconds.values()) for split, value in total.items()}


@pytest.mark.parametrize("seed", range(4))
def test_by_person_nobody_is_in_two_splits_and_shares_are_met(seed):
  seconds, people = random_data(seed, people=1200)
  splits = make_splits(seconds, people, SHARES, seed=seed)
  assert list(splits) == sorted(seconds) and check_leaks(splits.items(), people) == []
  who = collections.defaultdict(set)
  for name, split in splits.items():
    for person in people[name].names:
      who[person].add(split)
  assert all(len(found) == 1 for found in who.values())
  for split, share in reached(seconds, splits).items():
    assert abs(share - SHARES[split]) < 0.01  # A component is up to some minutes of two and a half hours.


def test_the_same_seed_in_any_order_and_another_seed():
  seconds, people = random_data(0, people=1200)
  seconds = dict.fromkeys(seconds, 10.0)  # Of equal length the seed decides.
  splits = make_splits(seconds, people, SHARES, seed=3)
  assert make_splits(dict(reversed(seconds.items())), dict(reversed(people.items())), SHARES, seed=3) == splits
  assert make_splits(seconds, people, SHARES, seed=4) != splits


def test_by_conversation_train_and_test_may_share_people_but_ood_may_not():
  seconds, people = random_data(5, pairs=200, people=400)
  recordings = {f"v{i // 2}_sub_video_{i % 2}": f"c{i}" for i in range(200)}
  seconds = {name: seconds[old] for name, old in recordings.items()}
  people = {name: people[f"c{2 * (int(old[1:]) // 2)}"] for name, old in recordings.items()}
  splits = make_splits(seconds, people, SHARES, by="conversation", seed=1)
  leaks = check_leaks(splits.items(), people)
  assert leaks and {leak.kind for leak in leaks} == {"person"} and all("ood" not in leak.splits for leak in leaks)
  for split, share in reached(seconds, splits).items():
    assert abs(share - SHARES[split]) < 0.02
  assert check_leaks(make_splits(seconds, people, SHARES, seed=1).items(), people) == []


def test_ood_is_another_source_where_sources_are_known():
  seconds, people = random_data(2, sources=5)
  splits = make_splits(seconds, people, SHARES | {"train": 0.6, "ood": 0.2})
  held_out = {people[name].source for name, split in splits.items() if split == "ood"}
  others = {people[name].source for name, split in splits.items() if split != "ood"}
  assert len(held_out) == 1 and len(others) == 4 and check_leaks(splits.items(), people) == []
  # The source whose duration is closest to the share; a source that shares a person with another goes with it.
  table = {f"a{i}": Speakers(f"a{i}", "", "A") for i in range(6)} | {f"b{i}": Speakers(f"b{i}", "", "B") for i in range(3)}
  table |= {"c0": Speakers("c0", "", "C")}
  lengths = dict.fromkeys(table, 1.0)
  of = lambda fractions, known=table: {people.source for name, people in known.items() if make_splits(lengths, known, fractions)[name] == "ood"}
  assert of({"train": 0.7, "ood": 0.3}) == {"B"} and of({"train": 0.9, "ood": 0.1}) == {"C"} and of({"train": 0.4, "ood": 0.6}) == {"A"}
  assert of({"train": 0.7, "ood": 0.3}, table | {"c0": Speakers("b0", "", "C")}) == {"B", "C"}
  # What is of no known source may be of any.
  assert of({"train": 0.9, "ood": 0.1}, table | {"c0": Speakers("c0", "", "")}) == {"B"}


def test_every_split_has_something_and_too_few_groups_are_said():
  people, seconds = chain(("a", "b"), ("c", "d"), ("e", "f")), {"c0": 1.0, "c1": 1.0, "c2": 1.0}
  assert sorted(make_splits(seconds, people, {"train": 0.8, "val": 0.1, "test": 0.1}).values()) == ["test", "train", "val"]
  assert set(make_splits(seconds, people, {"train": 1.0, "ood": 0.0}).values()) == {"train"}
  assert set(make_splits(seconds, people, {"ood": 1.0}).values()) == {"ood"}
  with pytest.raises(InputError, match="found 2 groups of people who share no recording, expected at least one for each of train, val, test"):
    make_splits(seconds, chain(("a", "b"), ("b", "c"), ("e", "f")), {"train": 0.8, "val": 0.1, "test": 0.1})
  with pytest.raises(InputError, match="found 1 groups of people .* for each of ood, rest"):
    make_splits(seconds, chain(("a", "b"), ("b", "c"), ("c", "f")), {"train": 0.8, "ood": 0.2})
  with pytest.raises(ValueError, match="by='people'"):
    make_splits(seconds, people, {"train": 1.0}, by="people")


def test_leaks_are_named_once_each():
  people = {"v_sub_video_0": Speakers("ann", "ben"), "w_sub_video_0": Speakers("cy", "ann"), "x": Speakers("", "di"), "y": Speakers("", "eve")}
  clips = [("v_sub_video_0", "train"), ("v_sub_video_1", "val"), ("w_sub_video_0", "ood"), ("x", "test"), ("x", "train"), ("y", "test")]
  assert [str(leak) for leak in check_leaks(clips, people)] == [
      "conversation x in train and test", "person ann in train and ood", "person di in train and test", "recording v in train and val"]  # fmt: skip
  assert [str(leak) for leak in check_leaks(clips, {})] == ["conversation x in train and test", "recording v in train and val"]


@pytest.mark.parametrize(
    "text, found",
    [("train=0.5", "0.5 in all"), ("train=0.5,dev=0.5", "dev=0.5"), ("train=0.5,train=0.5", "train=0.5"), ("train=-1,test=2", "train=-1"),
     ("train", "train"), ("", "found , "), ("train=nan,test=1", "train=nan"), ("train=0,5", "5")],
)  # fmt: skip
def test_fractions_that_are_none(text, found):
  with pytest.raises(InputError, match="--fractions") as error:
    parse_fractions(text)
  assert found in str(error.value)


def test_fractions():
  assert parse_fractions("train=0.8, test=0.1,ood=.1") == {"train": 0.8, "test": 0.1, "ood": 0.1}


# --- Written.


@pytest.fixture
def root(tmp_path):
  root = tmp_path / "root"
  tiny_world.write_conversations(root)
  (root / "people.csv").write_text("conversation,speaker1,speaker2\ntiny-1_sub_video_0,cy,di\ntiny-0_sub_video_0,ann,ben\n")
  return root


def test_written_splits_are_what_training_reads(root, tmp_path):
  clips = find_clips(root)
  made = {"tiny-0_sub_video_0": "test", "tiny-2_sub_video_0": "train"}
  before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
  out = tmp_path / "deep" / "out"
  kept = [clips[0], clips[2]]
  write_splits(out, kept, made, about={"seed": 3}, relations=root / "relations.csv", people=root / "people.csv")
  assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == {
      "relations.csv", "people.csv", "splits.json",
      *(f"{made[clip.name]}/{clip.name}_speaker{n}.{kind}" for clip in kept for n in (1, 2) for kind in ("wav", "npz"))}  # fmt: skip
  assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
  for clip, other in zip(kept, (load_dualtalk(root, "train"), load_dualtalk(root, "test"))):
    (one, two), (first, second) = load_dualtalk(out, made[clip.name]), other
    for found, expected in ((one, first), (two, second)):
      assert found.name == expected.name and found.relation.tolist() == expected.relation.tolist()
      np.testing.assert_array_equal(found.motion_b, expected.motion_b)
      np.testing.assert_array_equal(found.speech_a, expected.speech_a)
  assert [label.conversation for label in read_labels(out / "relations.csv")] == [clip.name for clip in kept]
  assert read_people(out / "people.csv") == {"tiny-0_sub_video_0": Speakers("ann", "ben")}
  assert json.loads((out / "splits.json").read_text()) == {"seed": 3, "splits": made}


def test_links_and_copies(root, tmp_path, monkeypatch):
  clip = find_clips(root)[0]
  wav = clip.wavs[0]
  moved = tmp_path / "elsewhere.wav"
  wav.rename(moved)
  wav.symlink_to(moved)
  write_splits(tmp_path / "linked", [clip], {clip.name: "val"}, about={})
  assert os.path.samefile(tmp_path / "linked" / "val" / wav.name, moved) and not (tmp_path / "linked" / "val" / wav.name).is_symlink()

  def refuse(source, target):
    raise OSError("another disk")

  monkeypatch.setattr(os, "link", refuse)
  write_splits(tmp_path / "copied", [clip], {clip.name: "val"}, about={})
  copy = tmp_path / "copied" / "val" / wav.name
  assert not os.path.samefile(copy, moved) and copy.read_bytes() == moved.read_bytes()


def test_all_or_nothing(root, tmp_path):
  clips = find_clips(root)
  splits = dict.fromkeys((clip.name for clip in clips), "train")
  with pytest.raises(InputError, match="root: found something there"):
    write_splits(root, clips, splits, about={})
  clips[2].npzs[1].unlink()
  with pytest.raises(InputError, match="out: found No such file"):
    write_splits(tmp_path / "out", clips, splits, about={})
  (root / "relations.csv").write_text("conversation\n")
  with pytest.raises(InputError, match="relations.csv:1"):
    write_splits(tmp_path / "out", clips[:1], splits, about={}, relations=root / "relations.csv")
  assert {path.name for path in tmp_path.iterdir()} == {"root"}
  (tmp_path / "empty").mkdir()
  write_splits(tmp_path / "empty", clips[:1], splits, about={})
  assert (tmp_path / "empty" / "train").is_dir()
