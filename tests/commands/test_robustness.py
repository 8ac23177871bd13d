"""The verb robustness: each condition does what it says, scores compare with what they should, bad input is one line."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import soundfile

import tiny_world
from rsatalker_jax.commands import robustness as command
from rsatalker_jax.data import sound
from rsatalker_jax.data.pipeline import MotionClip
from rsatalker_jax.errors import InputError
from rsatalker_jax.evaluation import robustness
from rsatalker_jax.evaluation.cases import Case

FRAMES = 100


def make_voice(seed=0):
  rng = np.random.default_rng(seed)
  loudness = np.repeat(rng.uniform(0, 0.3, FRAMES), 640) * (np.arange(FRAMES * 640) < 60 * 640)
  return (loudness * rng.normal(size=FRAMES * 640)).astype(np.float32)


def decibels(a, b):
  return 10 * np.log10(np.mean(np.square(a, dtype=float)) / np.mean(np.square(b, dtype=float)))


def test_conditions_do_what_they_are_called():
  wav = make_voice()
  heard = {name: change(wav) for name, change in robustness.CONDITIONS.items()}
  np.testing.assert_array_equal(heard["clean"], wav)
  assert decibels(heard["12 dB louder"], wav) == pytest.approx(12, abs=0.01)
  assert decibels(heard["12 dB quieter"], wav) == pytest.approx(-12, abs=0.01)
  power = sound.active_power(wav)
  for level in (20, 10):
    noise = heard[f"noise at {level} dB"] - wav
    assert 10 * np.log10(power / np.mean(noise**2)) == pytest.approx(level, abs=0.1)
  assert np.abs(heard["small room"][60 * 640 : 62 * 640]).max() > 0.01  # It goes on after the voice.
  assert sound.active_power(heard["small room"]) == pytest.approx(power, rel=0.01)
  spectrum = np.abs(np.fft.rfft(heard["telephone band"])) ** 2
  hertz = np.fft.rfftfreq(len(wav), 1 / 16000)
  assert spectrum[(hertz < 150) | (hertz > 5000)].sum() < 1e-3 * spectrum.sum()
  again = {name: change(wav) for name, change in robustness.CONDITIONS.items()}
  for name in heard:
    np.testing.assert_array_equal(heard[name], again[name])
  silent = np.zeros(16000, np.float32)
  assert all(np.isfinite(change(silent)).all() for change in robustness.CONDITIONS.values())


def test_scores_compare_with_the_truth_and_with_the_clean_output():
  """A generator that opens the jaw as loud as it hears: louder is wider and as like; noise is less like."""
  rng, true = np.random.default_rng(5), []

  def hear(change):
    for number in range(2):
      wav = make_voice(number)
      level = lambda x: np.sqrt(np.mean(x.reshape(FRAMES, 640) ** 2, axis=1))
      motion = np.zeros((FRAMES, 56), np.float32)
      motion[:, 50] = level(wav)
      true.append(motion)
      clip = MotionClip(str(number), level(change(wav))[:, None], motion, level(change(wav))[:, None], motion, np.zeros(2, int), "arkit")
      yield Case(clip, np.arange(FRAMES) < 60, np.zeros(FRAMES, bool), [("P", 2.0, 2.1)])

  generate = lambda case: np.pad(case.clip.speech_b, ((0, 0), (50, 5)))
  scores = robustness.score_conditions(generate, hear, lambda motion: motion[:, 50])
  assert list(scores) == list(robustness.CONDITIONS)
  assert scores["clean"]["clean/size"] == 1 and scores["clean"]["truth/lips/correlation"] == pytest.approx(1)
  assert scores["12 dB louder"]["clean/size"] == pytest.approx(10 ** (12 / 20), rel=1e-4)
  assert scores["12 dB quieter"]["clean/size"] == pytest.approx(10 ** (-12 / 20), rel=1e-4)
  r = {name: values["clean/lips/correlation"] for name, values in scores.items()}
  assert r["12 dB louder"] == pytest.approx(1) and 1 > r["noise at 20 dB"] > r["noise at 10 dB"] > 0.5
  assert scores["clean"]["truth/lips/bilabials"] in (0.0, 0.5, 1.0)
  # Whose lips are wrong in the same way whatever is heard: like its own, unlike the truth.
  wrong = rng.normal(size=FRAMES)
  generate = lambda case: np.pad(wrong[:, None], ((0, 0), (50, 5)))
  scores = robustness.score_conditions(generate, hear, lambda motion: motion[:, 50])["noise at 10 dB"]
  assert scores["clean/lips/correlation"] == pytest.approx(1) and abs(scores["truth/lips/correlation"]) < 0.4
  # Without truth, the clean output alone; a table without the columns of the truth.
  recorded = lambda change: (dataclasses.replace(c, clip=dataclasses.replace(c.clip, motion_b=None)) for c in hear(change))
  alone = robustness.score_conditions(generate, recorded, lambda motion: motion[:, 50])
  assert not any(name.startswith("truth/") for values in alone.values() for name in values)
  assert [column.title for column in robustness.robustness_table(alone).columns] == ["r", "times as wide"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  root = tmp_path_factory.mktemp("world")
  tiny_world.write_world(root / "data")
  config = tiny_world.tiny_config(root / "data")
  config.stages = ("motion",)
  tiny_world.train_quickly(config, str(root / "run"))
  return str(root / "run")


@pytest.fixture
def mouth(monkeypatch):
  """A ball has no lips: its jaw's angle."""
  monkeypatch.setattr(command, "make_lip_opening", lambda head: lambda motion: 0.01 * motion[..., 50])


def test_a_run_is_scored_and_nothing_is_kept_of_what_it_heard(workdir, mouth, tmp_path):
  soundfile.write(tmp_path / "said.wav", make_voice(3), 16000)
  files = lambda: {path.name for path in (pathlib.Path(workdir).parent / "data" / "features").glob("*")}
  before = files()
  markdown = command.score_robustness(workdir, recordings=[str(tmp_path / "said.wav")])
  assert files() == before
  folder = pathlib.Path(workdir) / "evaluation"
  results = json.loads((folder / "robustness.json").read_text())
  assert (folder / "robustness.md").read_text() == markdown and (folder / "robustness.tex").exists()
  assert list(results["conversations"]) == list(results["recordings"]) == list(robustness.CONDITIONS)
  assert "Conversations: 2 of 2 clips" in markdown and "Recordings: 1, 4 s" in markdown and markdown.count("| 12 dB louder |") == 2
  assert results["clips"] == 2 and results["conversations"]["clean"]["clean/size"] == 1
  for rows in (results["conversations"], results["recordings"]):
    assert rows["noise at 10 dB"]["clean/lips/correlation"] < 0.99999
  assert "Conversations: 1 of 2 clips" in command.score_robustness(workdir, "val", count=1)
  assert (folder / "val" / "robustness.md").exists()


def test_wrong_input_is_one_line(workdir, mouth, tmp_path, monkeypatch):
  with pytest.raises(InputError, match=r"none.wav: found no such file"):
    command.score_robustness(workdir, recordings=[str(tmp_path / "none.wav")])
  with pytest.raises(InputError, match="ood"):
    command.score_robustness(workdir, "ood")
  monkeypatch.setattr(command, "make_lip_opening", lambda head: None)
  with pytest.raises(InputError, match="found a head without a mouth"):
    command.score_robustness(workdir)
  with pytest.raises(InputError, match=r"config.json: found no such file"):
    command.score_robustness(str(tmp_path))
