"""The verb convert: between kinds of files, between heads, whole folders; and DualTalk's own conversations on the demo head."""

import json
import pathlib

import numpy as np
import pytest

import flame_like_head
import tiny_world
from rsatalker_jax.commands import convert
from rsatalker_jax.data import arkit
from rsatalker_jax.data.dualtalk import load_dualtalk, read_conversation, write_motion
from rsatalker_jax.data.tracks import read_track
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import check_basis, load_head

DEMO_HEAD = str(flame_like_head.DEMO_HEAD)
REAL = pathlib.Path(__file__).parents[3] / "shared" / "data" / "dualtalk_demo"


def write_motion_in(path: pathlib.Path, motion: np.ndarray, basis: str) -> None:
  path.parent.mkdir(parents=True)
  write_motion(path, motion, basis=basis)


def weights_motion(frames: int = 6) -> np.ndarray:
  r = np.random.default_rng(0)
  motion = np.concatenate([0.4 * r.random((frames, 50)), 0.1 * r.random((frames, 6))], axis=1).astype(np.float32)
  motion[:, 51:53] = 0  # Which ARKit has no shape for.
  return motion


@pytest.fixture(scope="module")
def flame(tmp_path_factory):
  """The FLAME-like head's file, which does not tell its year."""
  path = tmp_path_factory.mktemp("models") / "generic_model.npz"
  np.savez(path, **flame_like_head.flame_like_values(basis=None))
  return str(path)


def test_between_kinds_of_files(tmp_path, capsys):
  motion = weights_motion()
  write_motion(tmp_path / "a.npz", motion, basis="arkit")
  chain = ["a.npz", "b.csv", "c.json", "d.npz"]
  for source, target in zip(chain, chain[1:]):
    convert.convert_motion(motion=str(tmp_path / source), out=str(tmp_path / target))
    assert f"wrote {tmp_path / target}: 6 frames, expressions of arkit" in capsys.readouterr().out
  track = read_track(tmp_path / "d.npz", shape=False)
  assert (track.basis, track.sign) == ("arkit", "its key basis")
  np.testing.assert_allclose(track.motion, motion, atol=2e-6)
  rows = (tmp_path / "b.csv").read_text().splitlines()
  (tmp_path / "e.csv").write_text("\n".join(row.split(",", 1)[1] for row in rows))  # Without time codes.
  convert.convert_motion(motion=str(tmp_path / "e.csv"), out=str(tmp_path / "e.npz"), fps=12.5)
  assert len(read_track(tmp_path / "e.npz", shape=False).motion) == 11
  assert "resampled from 12.5 to 25 frames a second: 6 to 11" in capsys.readouterr().out


def test_between_heads(flame, tmp_path, capsys):
  weights = weights_motion()
  theirs = weights.copy()
  theirs[:, :50] = flame_like_head.components(weights[:, :50])
  theirs[:, 50:53], theirs[:, 53:] = (flame_like_head.TURN.apply(weights[:, part]) for part in (slice(50, 53), slice(53, 56)))
  write_motion(tmp_path / "a.npz", theirs, basis="flame2020")
  heads = dict(from_head=flame, to_head=DEMO_HEAD)
  with pytest.raises(InputError, match="generic_model.npz: basis: found a FLAME model that does not tell its year, expected --from_basis"):
    convert.convert_motion(motion=str(tmp_path / "a.npz"), out=str(tmp_path / "b.csv"), **heads)
  with pytest.raises(InputError, match="a.npz: basis: found flame2020, expected flame2023, .*: --from_head with the model of flame2020"):
    convert.convert_motion(motion=str(tmp_path / "a.npz"), out=str(tmp_path / "b.csv"), from_basis="flame2023", **heads)
  assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
  convert.convert_motion(motion=str(tmp_path / "a.npz"), out=str(tmp_path / "b.csv"), from_basis="flame2020", **heads)
  said = capsys.readouterr().out
  assert "points of the face, 0." in said and "mm apart (rms) at rest" in said and "95 % within" in said
  found = arkit.read_arkit(tmp_path / "b.csv").motion
  assert np.sqrt(np.mean((found - weights)[:, :50] ** 2)) < 0.05
  np.testing.assert_allclose(found[:, 53:], weights[:, 53:], atol=0.003)

  # A folder of conversations, in two goes.
  root, out = tmp_path / "talk", tmp_path / "talk_arkit"
  (root / "train").mkdir(parents=True)
  for speaker in (1, 2):
    write_motion(root / "train" / f"v_sub_video_0_speaker{speaker}.npz", theirs, basis="flame2020")
    tiny_world.write_voice(root / "train" / f"v_sub_video_0_speaker{speaker}.wav", speaker, frames=6)
  (root / "people.csv").write_text("conversation,speaker1,speaker2\n")
  again = dict(motion=str(root), out=str(out), from_basis="flame2020", **heads)
  first = out / "train" / "v_sub_video_0_speaker1.npz"
  write_motion_in(first, weights, "flame2023")
  with pytest.raises(InputError, match=f"talk_arkit: basis: found flame2023 in {first}, arkit in .*speaker2.npz, expected one for all"):
    convert.convert_motion(**again)
  first.unlink()
  convert.convert_motion(**again)
  report = json.loads((out / "conversion.json").read_text())
  assert report["converted"] == 1 and report["kept from before"] == 1 and report["voices and tables"] == 3
  assert 0 < report["error mm, mean over files"] < 0.2
  source = load_dualtalk(out, "train", default_relation="unknown")
  assert source.basis == "arkit" and len(source) == 2
  np.testing.assert_allclose(source[0].motion_b[:, :51], found[:, :51], atol=2e-5)
  assert (out / "people.csv").read_text() == (root / "people.csv").read_text()


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(out="b.txt"), "--out: found b.txt, expected a name that ends in .npz, .csv or .json"),
        (dict(out="a.npz"), "--out: found a.npz, expected another file than --motion"),
        (dict(from_head="x.pkl"), "--from_head: found x.pkl, expected --from_head and --to_head, or neither"),
        (dict(to_basis="arkit"), "--to_basis: found arkit, expected --from_head and --to_head with it"),
        (dict(fps=30.0), "--fps: found 30.0, expected a .csv or .json with it"),
        (dict(out="b.csv"), "motion: found b.csv for expressions of flame2020, expected a name that ends in .npz"),
        (dict(motion="data"), "data: found no .npz in its splits"),
        (dict(motion="data", out="b.npz"), "--out: found b.npz, expected another folder"),
        (dict(motion="data", out="data"), "--out: found data, expected another folder"),
        (dict(motion="nothing.npz"), "nothing.npz: found no such file"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, changes, message):
  monkeypatch.chdir(tmp_path)
  pathlib.Path("data/train").mkdir(parents=True)
  write_motion("a.npz", tiny_world.make_motion(0, 5), basis="flame2020")
  options = dict(motion="a.npz", out="c.npz") | changes
  if options["motion"] == "data" and options["out"] == "c.npz":
    options["out"] = "new"
  with pytest.raises(InputError) as error:
    convert.convert_motion(**options)
  assert message in str(error.value) and "\n" not in str(error.value)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "data"]


@pytest.mark.skipif(not REAL.is_dir(), reason=f"needs DualTalk's demo files in {REAL}")
@pytest.mark.parametrize("name, person", [("UbjUDM1MiGE_sub_video_72", 2), ("xkHwlcDSOjc_sub_video_109_000", 1)])
def test_dualtalks_conversations_on_the_demo_head_end_in_a_line_that_says_what_to_do(name, person):
  voice = lambda n: REAL / f"{name}_speaker{n}.wav"
  motion = REAL / f"{name}_speaker{person}.npz"
  conversation, _ = read_conversation(voice(person), motion, voice(3 - person), "unknown")
  with pytest.raises(InputError) as error:
    check_basis(load_head(DEMO_HEAD), conversation.basis, motion, head_path=DEMO_HEAD)
  assert "basis: found flame2020, expected arkit" in str(error.value)
  assert f"convert --motion={motion} --from_head=FLAME2020/generic_model.pkl --to_head={DEMO_HEAD} --out=" in str(error.value)
