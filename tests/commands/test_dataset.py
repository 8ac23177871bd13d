"""The dataset's command: statistics, new splits, leaks; and mistakes in one line."""

import json

import pytest

import tiny_world
from rsatalker_jax.commands.dataset import describe_dataset
from rsatalker_jax.data.dualtalk import load_dualtalk
from rsatalker_jax.errors import InputError

PEOPLE = "conversation,speaker1,speaker2\ntiny-0_sub_video_0,ann,ben\ntiny-1_sub_video_0,cy,di\ntiny-2_sub_video_0,eve,ann\n"


@pytest.fixture
def root(tmp_path):
  root = tmp_path / "root"
  tiny_world.write_conversations(root)
  return root


def test_statistics_are_printed_and_written(root, tmp_path, capsys):
  describe_dataset(root=str(root), out=str(tmp_path / "out"))
  printed = capsys.readouterr().out
  assert "| conversations | 1 | 1 | 1 | 3 |" in printed and "| non_blood,unequal | 0 | 1 | 0 | 1 |" in printed
  assert (tmp_path / "out" / "dataset.md").read_text() in printed
  assert json.loads((tmp_path / "out" / "dataset.json").read_text())["splits"]["val"]["relations"] == {"non_blood,unequal": 1}


def test_leaks_end_strict_calls(root, capsys):
  describe_dataset(root=str(root), strict=True)
  (root / "people.csv").write_text(PEOPLE)
  describe_dataset(root=str(root))
  printed = capsys.readouterr().out
  assert "1 leaks between splits:\n\n- person ann in train and test" in printed and "| people known | 2 | 2 | 2 | 5 |" in printed
  with pytest.raises(InputError, match="root: splits: found 1 leaks, as person ann in train and test, expected nobody in two splits"):
    describe_dataset(root=str(root), strict=True)


def test_new_splits(root, tmp_path, capsys):
  (root / "people.csv").write_text(PEOPLE)
  (root / "train" / "tiny-9_sub_video_0_speaker1.wav").touch()
  out = tmp_path / "out"
  describe_dataset(root=str(root), split="person", fractions="train=0.7,test=0.3", seed=4, out=str(out), strict=True)
  printed = capsys.readouterr().out
  assert "left out: 1 incomplete conversations, as tiny-9_sub_video_0" in printed and "Nothing leaks" in printed
  about = json.loads((out / "splits.json").read_text())
  assert about["splits"] == {"tiny-0_sub_video_0": "train", "tiny-1_sub_video_0": "test", "tiny-2_sub_video_0": "train"}
  assert (about["by"], about["seed"], about["fractions"], about["unknown_speakers"]) == ("person", 4, {"train": 0.7, "test": 0.3}, 0)
  assert about["reached"] == pytest.approx({"train": 2 / 3, "test": 1 / 3})
  assert "train 66.7 % (of 70 %), test 33.3 % (of 30 %)" in printed
  assert [clip.name for clip in load_dualtalk(out, "test")] == ["tiny-1_sub_video_0_speaker1", "tiny-1_sub_video_0_speaker2"]
  assert (out / "dataset.md").exists() and (out / "people.csv").exists()
  describe_dataset(root=str(root), split="conversation", fractions="train=0.4,val=0.3,test=0.3", out=str(tmp_path / "other"))
  assert {path.name for path in (tmp_path / "other").iterdir() if path.is_dir()} == {"train", "val", "test"}


def test_contradictions_and_tables_elsewhere(root, tmp_path, capsys):
  lines = ["conversation,blood,equal,annotator", *(f"tiny-0_sub_video_0,true,{word},{who}" for word, who in (("true", "a"), ("false", "b")))]
  (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
  (tmp_path / "people.csv").write_text(PEOPLE)
  (tmp_path / "people.csv").rename(tmp_path / "who.csv")
  describe_dataset(root=str(root), relations=str(tmp_path / "labels.csv"), people=str(tmp_path / "who.csv"))
  printed = capsys.readouterr().out
  assert "equal 1 (0 by majority, 1 now unknown)" in printed and "| blood,unknown | 1 | 0 | 0 | 1 |" in printed
  assert "| no label | 0 | 1 | 1 | 2 |" in printed and "person ann" in printed


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"root": "ROOT/nothing"}, "nothing: found no such folder"),
        ({"root": "ROOT/train/.."}, None),
        ({"split": "person"}, "--out: found none"),
        ({"fractions": "train=1,test=1"}, "--fractions: found 2 in all"),
        ({"relations": "ROOT/none.csv"}, "none.csv: found No such file"),
        ({"people": "ROOT/relations.csv"}, "relations.csv:1: columns"),
        ({"split": "person", "fractions": "train=0.5,test=0.5", "out": "ROOT"}, "found something there"),
        ({"split": "person", "out": "ROOT/../new"}, "splits: found 2 groups .* each of train, val, test"),
    ],
)
def test_mistakes_are_one_line(root, arguments, message):
  arguments = {"root": "ROOT", **arguments}
  arguments = {key: value.replace("ROOT", str(root)) for key, value in arguments.items()}
  if message is None:
    describe_dataset(**arguments)
    return
  with pytest.raises(InputError, match=message):
    describe_dataset(**arguments)
  assert not (root.parent / "new").exists()


def test_splits_need_whole_conversations_once(root, tmp_path):
  for path in root.glob("*/*.npz"):
    path.unlink()
  with pytest.raises(InputError, match="--root: found no complete conversation"):
    describe_dataset(root=str(root), split="person", out=str(tmp_path / "out"))
  for path in (root / "train").iterdir():
    (root / "val" / path.name).symlink_to(path)
  with pytest.raises(InputError, match="--root: found tiny-0_sub_video_0 in two splits"):
    describe_dataset(root=str(root), split="person", out=str(tmp_path / "out"))
