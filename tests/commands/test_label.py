"""The labelling command: the page from the program's start to its end, agreement, and mistakes in one line."""

import pathlib
import re
import signal
import subprocess
import sys
import urllib.request

import pytest

import tiny_world
from rsatalker_jax.commands.label import label_conversations
from rsatalker_jax.errors import InputError

ROOT = pathlib.Path(__file__).parents[2]
HEADER = "conversation,blood,equal,annotator,confidence\n"


@pytest.fixture
def conversations(tmp_path):
  tiny_world.write_conversations(tmp_path / "conversations")
  return tmp_path / "conversations"


def test_agreement(conversations, tmp_path, capsys):
  lines = [f"tiny-{i}_sub_video_0,{said},true,{who}," for who, words in (("ann", "110"), ("ben", "100"))
           for i, said in enumerate({"1": "true", "0": "false"}[word] for word in words)]  # fmt: skip
  table = tmp_path / "labels.csv"
  table.write_text(HEADER + "\n".join(lines) + "\n")
  label_conversations(conversations=str(conversations), relations=str(table), agreement=True)
  printed = capsys.readouterr().out
  # Two of three alike; by chance 2/3 * 1/3 + 1/3 * 2/3 = 4/9: kappa 0.4.
  assert "6 labels of 3 of 3 conversations" in printed and "| ann, ben | blood | 3 | 2 | 0.40 (" in printed
  assert "| ann, ben | equal | 3 | 3 | not defined | 0 |" in printed
  assert "blood 1 (0 by majority, 1 now unknown)" in printed and "  tiny-1_sub_video_0: blood: 1 true, 1 false" in printed
  table.write_text(HEADER + lines[0] + "\n")
  label_conversations(conversations=str(conversations), relations=str(table), agreement=True)
  printed = capsys.readouterr().out
  assert "1 labels of 1 of 3" in printed and "no two annotators" in printed and "contradict" not in printed


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "--annotator: found none"),
        ({"annotator": " "}, "--annotator: found ' '"),
        ({"agreement": True, "annotator": "ann"}, "one of them at a time"),
        ({"annotator": "ann", "videos": "/nowhere"}, "--videos"),
        ({"annotator": "ann", "conversations": "/nowhere"}, "no such folder"),
        ({"agreement": True, "relations": "/nowhere/a.csv"}, "No such file"),
        ({"annotator": "ann", "relations": f"{__file__}/a.csv"}, "--relations: found .*, below .*test_label.py, a file"),
    ],
)
def test_mistakes_are_one_line(conversations, arguments, message):
  with pytest.raises(InputError, match=message):
    label_conversations(**{"conversations": str(conversations), **arguments})


def test_the_program_serves_until_it_is_told_to_end(conversations):
  (conversations / "relations.csv").write_text(HEADER + "tiny-0_sub_video_0,true,true,ann,\ntiny-1_sub_video_0,true,true,ben,\n")
  arguments = ["label", f"--conversations={conversations}", "--annotator=ann", "--port=0"]
  process = subprocess.Popen(
      [sys.executable, "-m", "rsatalker_jax", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )
  try:
    assert process.stdout.readline().startswith(f"3 conversations, 1 labelled by ann; labels go to {conversations / 'relations.csv'}")
    address = re.match(r"serving on (http://127\.0\.0\.1:\d+/) ", process.stdout.readline())[1]
    assert b"How are these two people related?" in urllib.request.urlopen(address).read()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
  finally:
    process.kill()
  assert (process.returncode, errors) == (0, "")
