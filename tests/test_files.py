"""Files that are whole or not there; files from outside that are none."""

import errno
import os

import pytest

from rsatalker_jax.errors import InputError
from rsatalker_jax.files import open_regular, read_text, read_whole, whole_file


def test_a_file_has_its_name_when_it_is_complete(tmp_path):
  path = tmp_path / "numbers.bin"
  for content in (b"one", b"two"):
    before = path.read_bytes() if path.exists() else None
    with whole_file(str(path)) as file, whole_file(path) as other:  # Two at once are not in each other's way.
      file.write(content)
      other.write(content)
      assert (path.read_bytes() if path.exists() else None) == before
    assert path.read_bytes() == content
  assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_what_was_there(tmp_path):
  path = tmp_path / "numbers.bin"
  path.write_bytes(b"whole")
  with pytest.raises(RuntimeError, match="own"), whole_file(path) as file:
    file.write(b"ha")
    raise RuntimeError("own trouble")
  assert path.read_bytes() == b"whole" and list(tmp_path.iterdir()) == [path]


def test_only_regular_files_are_opened(tmp_path):
  (tmp_path / "a").write_bytes(b"content")
  (tmp_path / "link").symlink_to("a")
  for name in ("a", "link"):
    with open_regular(tmp_path / name, "a voice") as file:
      assert file.read() == b"content"
  os.mkfifo(tmp_path / "pipe")
  for path, message in (
      (tmp_path / "pipe", "found a pipe or a device, expected a regular file: a voice"),
      ("/dev/zero", "found a pipe or a device, expected a regular file: a voice"),
      (tmp_path, "found a folder, expected a regular file: a voice"),
      (tmp_path / "none", "found No such file or directory, expected a voice"),
      (tmp_path / "a\0", "null"),
  ):
    with pytest.raises(InputError, match=message):
      open_regular(path, "a voice")


def test_text_is_read_in_the_encodings_of_windows_and_refused_in_others(tmp_path):
  path = tmp_path / "a.csv"
  text = "Müller,blood\r\n日本\n"
  for encoding in ("utf-8", "utf-8-sig", "utf-16"):
    path.write_bytes(text.encode(encoding))
    assert read_text(path, "a table") == text
  path.write_bytes("\ufeffa".encode("utf-16-be"))
  assert read_text(path, "a table") == "a"
  for data, message in (
      (text.encode("utf-16-le"), "byte 2: found b'.*', which is not UTF-8, expected a table, saved as UTF-8"),
      ("Müller".encode("latin1"), r"a.csv: byte 1: found b'\\xfclle', which is not UTF-8"),
      ("ab".encode("utf-16-le"), "character 1: found a zero"),
      (text.encode("utf-32"), "found a zero"),
      (b"\xff\xfea", "which is not UTF-16"),
  ):
    path.write_bytes(data)
    with pytest.raises(InputError, match=message):
      read_text(path, "a table")


def test_sparse_files_are_not_read_into_memory(tmp_path):
  with (tmp_path / "a").open("wb") as file:
    file.truncate(1 << 40)
  with pytest.raises(InputError, match="a: found 1099511627776 bytes, expected a head, of 1024 MB at most"):
    read_whole(tmp_path / "a", "a head")
  (tmp_path / "b").write_bytes(b"12345")
  assert read_whole(tmp_path / "b", "a head", max_bytes=5) == b"12345"
  with pytest.raises(InputError):
    read_whole(tmp_path / "b", "a head", max_bytes=4)


def test_the_folder_of_a_whole_file_is_made(tmp_path):
  with whole_file(tmp_path / "a" / "b" / "c.txt") as file:
    file.write(b"x")
  assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == b"x"


def test_what_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path):
  (tmp_path / "file").write_text("x")
  with pytest.raises(InputError, match="file/a.txt: found .*expected a file that can be written"):
    with whole_file(tmp_path / "file" / "a.txt"):
      pass
  (tmp_path / "folder").mkdir()
  with pytest.raises(InputError, match="folder: found Is a directory"):
    with whole_file(tmp_path / "folder"):
      pass
  with pytest.raises(InputError, match="full.txt: found No space left on device"):
    with whole_file(tmp_path / "full.txt"):
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  with pytest.raises(FileNotFoundError):  # Of a file that is read meanwhile.
    with whole_file(tmp_path / "b.txt"):
      open(tmp_path / "nothing", "rb")
  assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
