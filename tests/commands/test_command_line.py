"""The programs as a user meets them: a mistake is one line on stderr, and the status is not 0."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train.py", "--config=configs/nothing.py", "--workdir=w"], "'configs/nothing.py', expected a config file"),
        (["train.py", "--config=configs/demo.py:cousins", "--workdir=w"], "expected full, no_relation, dualtalk"),
        (["train.py", "--config=configs/demo.py", "--workdir=w", "--config.motion.step=1"], "Did you mean"),
        (["train.py", "--config=configs/demo.py", "--workdir=w", "motion"], "found motion, expected only flags"),
        (["eval.py", "--config=configs/demo.py", "--workdir=w"], "w/config.json: found no such file"),
        (["eval.py", "--workdir=w", "--split=train"], "--split=train: value should be one of <val|test|ood>"),
        (["generate.py", "--workdir=w", "--speech_a=a", "--motion_a=b", "--speech_b=c", "--relation=d", "--out=e"],
         "w/config.json: found no such file"),
        (["export_avatar.py", "--workdir=w", "--out=e.obj"], "w/config.json: found no such file"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, message):
  arguments = [argument.replace("=w", f"={tmp_path}/w") for argument in arguments]
  done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 2, done.stderr
  lines = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
  assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], done.stderr
  assert list(tmp_path.iterdir()) == []
