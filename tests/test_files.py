"""Files that are whole or not there."""

import pytest

from rsatalker_jax.files import whole_file


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
  with pytest.raises(OSError, match="disk"), whole_file(path) as file:
    file.write(b"ha")
    raise OSError("disk full")
  assert path.read_bytes() == b"whole" and list(tmp_path.iterdir()) == [path]
  with pytest.raises(FileNotFoundError), whole_file(tmp_path / "nowhere" / "numbers.bin"):
    pass
