"""Where a command writes is looked at before the work."""

import os

import pytest

from rsatalker_jax.commands.outputs import check_output
from rsatalker_jax.errors import InputError


def test_a_new_file_an_old_one_and_a_folder_to_be_made_are_fine(tmp_path):
  (tmp_path / "old.mp4").write_text("x")
  for name in ("new.mp4", "old.mp4", "new folder/deep/a.mp4"):
    check_output("--out", tmp_path / name, {"--motion_a": tmp_path / "a.npz", "--speech_a": None})
  assert os.listdir(tmp_path) == ["old.mp4"] and (tmp_path / "old.mp4").read_text() == "x"


def test_a_folder_a_device_and_what_lies_below_a_file_are_refused(tmp_path):
  (tmp_path / "folder.mp4").mkdir()
  (tmp_path / "file").write_text("x")
  for name, message in (("folder.mp4", "a folder"), ("file/a.mp4", "below .*file, a file"), ("file/b/a.mp4", "below"),
                        ("x" * 300 + ".mp4", "File name too long"), ("a\0.mp4", "null")):
    with pytest.raises(InputError, match=f"--out: .*{message}"):
      check_output("--out", tmp_path / name)
  with pytest.raises(InputError, match="--out: found /dev/null, no plain file"):
    check_output("--out", "/dev/null")


def test_an_input_is_not_written_over(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "tracks").mkdir()
  for name in ("a.npz", "tracks/0.npz"):
    (tmp_path / name).write_text("x")
  (tmp_path / "link.npz").symlink_to("a.npz")
  os.link("a.npz", "hard.npz")
  for out in ("a.npz", "./a.npz", tmp_path / "a.npz", "link.npz", "hard.npz"):
    with pytest.raises(InputError, match="--save_motion: found .*another file than --motion_a, which would be lost"):
      check_output("--save_motion", out, {"--speech_a": "a.wav", "--motion_a": "a.npz"})
  with pytest.raises(InputError, match="--motion_a"):  # Whose motion is a folder of files.
    check_output("--save_motion", "tracks/0.npz", {"--motion_a": "tracks"})
  check_output("--save_motion", "b.npz", {"--motion_a": "a.npz"})


def test_a_folder_that_may_not_be_written_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(os, "access", lambda path, mode: False)  # To root everything may be written but a read-only disk.
  with pytest.raises(InputError, match="which may not be written"):
    check_output("--out", tmp_path / "a.mp4")
