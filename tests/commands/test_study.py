"""The study's command: links, serving, results, planning, forgetting; and mistakes in one line."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import urllib.request

import numpy as np
import pytest

from rsatalker_jax import study as study_package
from rsatalker_jax import web as web_package
from rsatalker_jax.commands.study import run_study
from rsatalker_jax.errors import InputError
from rsatalker_jax.study import criteria
from rsatalker_jax.study.store import Answer, open_store
from study.world import write_tiny_video

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
  folder = tmp_path_factory.mktemp("videos")
  for seed, method in enumerate(("dualtalk", "ours")):
    write_tiny_video(folder / "breakfast" / f"{method}.mp4", seed)
  return folder


@pytest.fixture
def answered(videos, tmp_path, capsys):
  """A study that four people have finished, and a fifth has begun."""
  folder = tmp_path / "study"
  run_study(study=str(folder), videos=str(videos), links=6)
  store, rng = open_store(folder), np.random.default_rng(0)
  for number in range(1, 6):
    store.record_consent(number)
    participant = store.participant(store.tokens()[number])
    for trial in participant.trials[: 1 if number == 5 else 2]:
      level = {"dualtalk": 40, "ours": 60}[trial.method]
      scores = {key: int(level + rng.integers(-9, 10)) for key in criteria.KEYS}
      store.record_answer(number, trial.position, Answer("client-1", scores, ""))
  store.close()
  capsys.readouterr()
  return folder


def test_links_are_made_once(videos, tmp_path, capsys):
  folder = str(tmp_path / "study")
  run_study(study=folder, videos=str(videos), links=2, port=8123)
  first = capsys.readouterr().out
  assert "1 conversations of dualtalk, ours" in first and "note" not in first
  assert [number for number, _ in re.findall(r"^ +(\d+)  http://127\.0\.0\.1:8123/s/([\w-]{22})$", first, re.MULTILINE)] == ["1", "2"]
  run_study(study=folder, videos=str(videos), links=3, url="https://lab.example/faces")
  second = capsys.readouterr().out
  assert re.findall(r"/s/(\S+)", second)[:2] == re.findall(r"/s/(\S+)", first)
  assert second.count("https://lab.example/faces/s/") == 3 and "balanced over multiples of 2 participants" in second


def test_what_might_tell_methods_apart_is_said(videos, tmp_path, capsys):
  folder = tmp_path / "videos"
  for method, sound in (("a", False), ("b", False)):
    write_tiny_video(folder / "talk" / f"{method}.mp4", 1, sound=sound)
  from rsatalker_jax.media.video import write_video

  write_video(folder / "talk" / "b.mp4", np.zeros((20, 16, 16, 3), np.uint8))
  run_study(study=str(tmp_path / "study"), videos=str(folder), links=2)
  printed = capsys.readouterr().out
  assert "note: the videos of talk last from 0.2 to 0.8 s" in printed and "note: the videos of talk have no sound" in printed


def test_results_planning_and_forgetting(answered, capsys):
  run_study(study=str(answered), results=True)
  printed = capsys.readouterr().out
  assert "4 participants, 1 conversations each" in printed and "1 answers are left out" in printed
  assert {"answers.csv", "results.json", "results.md"} <= {path.name for path in answered.iterdir()}
  run_study(study=str(answered), power=5.0)
  planned = capsys.readouterr().out
  assert "difference of 5 points" in planned and "| ours – dualtalk |" in planned
  run_study(study=str(answered), forget=2)
  assert "participant 2 and 2 answers are removed" in capsys.readouterr().out
  run_study(study=str(answered), results=True)
  assert "3 participants" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "--videos: found none"),
        ({"links": 2}, "--videos: found none"),
        ({"results": True}, "study.sqlite: found no such file"),
        ({"power": 5.0}, "study.sqlite: found no such file"),
        ({"results": True, "power": 5.0}, "found --results and --power, expected one of them"),
        ({"results": True, "videos": "v"}, "--videos: found v, expected none with --results"),
        ({"videos": "nothing"}, "nothing: found No such file"),
        ({"videos": "VIDEOS"}, "found no participants, expected those that --links"),
        ({"videos": "VIDEOS", "host": "0.0.0.0"}, "--url: found none"),
    ],
)
def test_mistakes_are_one_line(videos, tmp_path, arguments, message):
  arguments = {key: str(videos) if value == "VIDEOS" else value for key, value in arguments.items()}
  with pytest.raises(InputError, match=message):
    run_study(study=str(tmp_path / "study"), **arguments)


@pytest.mark.parametrize("power", [0.0, -1.0, 101.0, float("nan")])
def test_effects_that_are_none(answered, power):
  with pytest.raises(InputError, match="--power: found .* expected a difference"):
    run_study(study=str(answered), power=power)


def test_without_answers_there_are_no_results(videos, tmp_path, capsys):
  run_study(study=str(tmp_path / "study"), videos=str(videos), links=2)
  for flag in ({"results": True}, {"power": 5.0}):
    with pytest.raises(InputError, match="found 0 "):
      run_study(study=str(tmp_path / "study"), **flag)
  assert not list((tmp_path / "study").glob("results*"))


def test_without_aiohttp_there_is_one_line(videos, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "aiohttp", None)
  for package, name in ((study_package, "server"), (web_package, "serving")):
    monkeypatch.delitem(sys.modules, f"{package.__name__}.{name}", raising=False)
    monkeypatch.delattr(package, name, raising=False)
  with pytest.raises(InputError, match=r"aiohttp: found .* expected it installed: pip install .*rsatalker-jax\[study\]"):
    run_study(study=str(tmp_path / "study"), videos=str(videos), links=2)
  assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_the_program_serves_until_it_is_told_to_end(answered, videos, end):
  arguments = ["study", f"--study={answered}", f"--videos={videos}", "--port=0"]
  process = subprocess.Popen(
      [sys.executable, "-m", "rsatalker_jax", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )
  try:
    lines = [process.stdout.readline() for _ in range(3)]
    assert "6 participants, 5 of them begun; 9 of 12 answers" in lines[1]
    address = re.match(r"serving on (http://127\.0\.0\.1:\d+/) ", lines[2])[1]
    with urllib.request.urlopen(address, timeout=600) as response:
      assert b"personal link" in response.read()
    os.kill(process.pid, end)
    assert process.wait(timeout=600) == 0 and process.stderr.read() == ""
  finally:
    process.kill()
    process.communicate()
