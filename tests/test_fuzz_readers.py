"""A few of the inputs of fuzz_readers.py for every reader, and that the tool notices what is wrong."""

import pathlib

import fuzz_readers
import numpy as np
import pytest
from fuzz_readers import READERS

INPUTS = 25


@pytest.mark.parametrize("name", READERS)
def test_whole_files_are_read_and_damaged_ones_refused_or_read(tmp_path, name):
  template = tmp_path / "template"
  template.mkdir()
  READERS[name].write(template)
  for path in sorted(template.glob(READERS[name].targets)):
    READERS[name].read(path)
  outcomes = [fuzz_readers.try_input(name, template, 1, number, tmp_path / str(number)) for number in range(INPUTS)]
  assert {outcome for outcome, _ in outcomes} <= {"read", "refused"}, [o for o in enumerate(outcomes) if o[1][1]]


def test_damage_reaches_what_archives_hold(tmp_path):
  """Of damaged archives, some are whole ones of other arrays."""
  np.savez(tmp_path / "a.npz", x=np.ones(5))
  whole = (tmp_path / "a.npz").read_bytes()
  rng, others = np.random.default_rng(0), 0
  for _ in range(60):
    (tmp_path / "b.npz").write_bytes(fuzz_readers.damage(rng, whole))
    try:
      with np.load(tmp_path / "b.npz") as file:
        others += not np.array_equal(file["x"], np.ones(5))
    except Exception:
      pass
  assert others >= 3


def test_what_is_wrong_is_counted(tmp_path, monkeypatch):
  """A reader with faults of its own is run as the others are: in a child that may die, and that another follows."""
  tool = (tmp_path / "fuzz_readers.py").resolve()
  program = """
def _fault(path):
  match int(path.parent.name):
    case 0:
      return np.inf
    case 1:
      return [][0]
    case 3:
      raise InputError(path, "", 1, 2)
    case 4:
      raise InputError("elsewhere", "", 1, 2)
    case 5:
      os.kill(os.getpid(), signal.SIGSEGV)
  return 1.0


READERS = {"faults": Reader(lambda folder: (folder / "a.txt").write_text("a"), "*.txt", _fault),"""
  text = pathlib.Path(fuzz_readers.__file__).read_text()
  text = text.replace("_TESTS = pathlib.Path(__file__).resolve().parent", f"_TESTS = pathlib.Path({str(fuzz_readers._TESTS)!r})")
  tool.write_text(text.replace("\nREADERS = {", program))
  monkeypatch.setattr(fuzz_readers, "__file__", str(tool))
  results = fuzz_readers.run_reader("faults", 0, 0, 7)
  assert [number for number, _, _ in results] == list(range(7))
  assert [outcome for _, outcome, _ in results] == ["wrong", "traceback", "read", "refused", "wrong", "crash", "read"]
  assert "SIGSEGV" in results[5][2]
