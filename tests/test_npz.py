"""The reader of .npz and .npy: numpy's own files are read as numpy reads them, and whatever else in one line."""

import concurrent.futures
import os
import tracemalloc
import zipfile

import numpy as np
import pytest

from rsatalker_jax import npz
from rsatalker_jax.errors import InputError

VALUES = {
    "float": np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32),
    "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "big_endian": np.arange(7, dtype=">i4"),
    "half": np.float16([1.5, -2]),
    "number": np.array(7),
    "empty": np.zeros((0, 5), np.uint8),
    "truth": np.array([True, False]),
    "text": np.array(["blood", "é"]),
    "bytes": np.array([b"a", b"bc"]),
}


def header(descr="'<f4'", shape="(60, 50)", version=1, text=None) -> bytes:
  """By hand, as numpy.lib.format describes it."""
  content = (text or f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}").encode() + b"\n"
  return b"\x93NUMPY" + bytes([version, 0]) + len(content).to_bytes(2 if version == 1 else 4, "little") + content


def archive(path, content: bytes, compression=zipfile.ZIP_STORED, name="x.npy"):
  with zipfile.ZipFile(path, "w", compression) as file:
    file.writestr(name, content)
  return path


def read(path, key="x"):
  with npz.open_npz(path) as file:
    return file[key]


def refusal(function, *arguments) -> str:
  with pytest.raises(InputError) as error:
    function(*arguments)
  assert "\n" not in str(error.value) and str(error.value).startswith(str(arguments[0]))
  return str(error.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read(tmp_path, save):
  save(tmp_path / "a.npz", **VALUES)
  with npz.open_npz(tmp_path / "a.npz") as file:
    assert list(file) == list(VALUES) and len(file) == len(VALUES) and "float" in file and "double" not in file
    for key, value in VALUES.items():
      assert file[key].dtype == value.dtype, key
      np.testing.assert_array_equal(file[key], value, err_msg=key)
  for key, value in VALUES.items():
    np.save(tmp_path / "a.npy", value)
    np.testing.assert_array_equal(npz.read_npy(tmp_path / "a.npy"), value, err_msg=key)


@pytest.mark.parametrize(
    "text",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }",
        "{'shape': (3L, 2L), 'descr':'<f4', 'fortran_order': False}",  # Python 2.
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3,2,), }   ",  # cnpy.
    ],
)
@pytest.mark.parametrize("version", [1, 2, 3])
def test_headers_of_other_writers(tmp_path, text, version):
  data = np.arange(6, dtype=np.float32)
  path = archive(tmp_path / "a.npz", header(text=text, version=version) + data.tobytes())
  np.testing.assert_array_equal(read(path), data.reshape(3, 2))


@pytest.mark.parametrize(
    "content, message",
    [
        (header("'|O'"), "type '|O'"),
        (header("[('a', '<f4')]"), "the header"),
        (header("'<f16'") + bytes(16 * 3000), "type '<f16'"),
        (header("'<c8'") + bytes(8 * 3000), "type '<c8'"),
        (header("'<U0'"), "type '<U0'"),
        (header() + bytes(4 * 3000 - 1), "11999 bytes of numbers, expected 12000: float32 of shape (60, 50)"),
        (header() + bytes(4 * 3000 + 1), "12001 bytes of numbers"),
        (header(shape="(1000000, 50)"), "0 bytes of numbers"),
        (header(shape="(10000000000, 50)"), "beyond 32 dimensions or 512 MB"),
        (header(shape="(4294967296, 4294967296)"), "512 MB"),  # 0 modulo 2^64.
        (header(shape="(0, 9223372036854775807)"), "512 MB"),
        (header(shape="(-1, 50)"), "the header"),
        (header(shape="(60, 50 , }"), "the header"),
        (header(shape="(1, 1L1)"), "the shape"),
        (header(shape="(, )"), "the shape"),
        (header(shape=f"({'1, ' * 33})"), "beyond 32 dimensions"),
        (header(text="{'descr': '<f4', 'fortran_order': 0, 'shape': (1,)}"), "the header"),
        (header(text="{'descr': '<f4', 'shape': (1,)}"), "the header"),
        (header(text="{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1,)}"), "the header"),
        (header(text="{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'more': 1}"), "the header"),
        (header(text="{'descr': True, 'fortran_order': False, 'shape': (1,)}"), "the header"),
        (header(text="(" * 5000), "the header"),
        (b"\x93NUMPY\2\0\xff\xff\xff\xff", "a header of 4294967295 bytes"),
        (b"\x93NUMPY\4\0" + header()[8:], "begins with"),
        (b"text", "begins with b'text'"),
        (b"", "begins with b''"),
        (header("'|b1'", "(2,)") + b"\1\2", "truth of 2"),
        (header("'<U1'", "(1,)") + b"\0\0\x11\0", "characters"),
    ],
)
def test_headers_that_lie(tmp_path, content, message):
  assert message in refusal(read, archive(tmp_path / "a.npz", content))
  (tmp_path / "a.npy").write_bytes(content)
  assert message in refusal(npz.read_npy, tmp_path / "a.npy")


def test_nothing_is_allocated_for_a_header_or_a_directory_that_lies(tmp_path):
  """Archives of a few kB that promise gigabytes, each with the header and the directory in agreement."""
  rows = 1 << 21  # Of 200 bytes.
  lying = archive(tmp_path / "lying.npz", header(shape=f"({rows}, 50)"), zipfile.ZIP_DEFLATED)
  data = bytearray(lying.read_bytes())
  place = data.rindex(b"PK\1\2")
  size = len(header(shape=f"({rows}, 50)")) + rows * 200
  data[place + 24 : place + 28] = size.to_bytes(4, "little")
  lying.write_bytes(data)
  bomb = archive(tmp_path / "bomb.npz", header(shape="(2000, 2000, 50)") + bytes(8_000_000), zipfile.ZIP_DEFLATED)
  data = bytearray(bomb.read_bytes())
  place = data.rindex(b"PK\1\2")
  data[place + 24 : place + 28] = (len(header(shape="(2000, 2000, 50)")) + 800_000_000).to_bytes(4, "little")
  bomb.write_bytes(data)
  tracemalloc.start()
  try:
    assert "by the archive's directory" in refusal(read, lying)
    assert "by the archive's directory" in refusal(read, bomb)
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert peak < 1 << 20


def test_arrays_above_the_limit_are_refused_before_they_are_unpacked(tmp_path, monkeypatch):
  np.savez_compressed(tmp_path / "a.npz", x=np.zeros((1000, 50), np.float32), y=np.zeros(3))
  monkeypatch.setattr(npz, "MAX_BYTES", 200_000)
  assert read(tmp_path / "a.npz").shape == (1000, 50)
  monkeypatch.setattr(npz, "MAX_BYTES", 199_999)
  assert "beyond 32 dimensions or 0 MB" in refusal(read, tmp_path / "a.npz")
  assert read(tmp_path / "a.npz", "y").shape == (3,)  # What nobody asks for is not looked at.


def test_every_byte_of_an_archive_may_be_damaged(tmp_path):
  """Other bytes are one line, or, where nothing that counts lies, the same numbers."""
  path = tmp_path / "a.npz"
  good = np.random.default_rng(0).integers(0, 9, (20, 3)).astype(np.float32)
  for save in (np.savez, np.savez_compressed):
    save(path, x=good)
    whole = path.read_bytes()
    refused = 0
    for place in range(len(whole)):
      data = bytearray(whole)
      data[place] ^= 1 << place % 8
      path.write_bytes(data)
      try:
        np.testing.assert_array_equal(read(path), good)
      except InputError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
        refused += 1
    assert refused > len(whole) / 2
    for length in range(0, len(whole), 7):
      path.write_bytes(whole[:length])
      refusal(read, path)


def test_archives_that_are_none(tmp_path):
  with (tmp_path / "one.npz").open("wb") as file:
    np.save(file, VALUES["float"])
  (tmp_path / "page.npz").write_text("<html>")
  (tmp_path / "empty.npz").touch()
  (tmp_path / "letters.npz").write_bytes(b"PK\3\4")
  for name, message in (
      ("one.npz", "found a single array (.npy), expected an .npz of plain arrays"),
      ("page.npz", "unreadable file, which begins with b'<html>'"),
      ("empty.npz", "found an empty file"),
      ("letters.npz", "unreadable: File is not a zip file"),
      ("none.npz", "found No such file or directory"),
      (".", "found a folder, expected a regular file: an .npz"),
  ):
    assert message in refusal(read, tmp_path / name)
  assert "No such file" in refusal(npz.read_npy, tmp_path / "none.npy")
  with pytest.raises(InputError, match="null (byte|character)"):
    read(tmp_path / "a\0b")
  archive(tmp_path / "other.npz", b"text", name="x.txt")
  assert "x: found no such key (there are none), expected an .npz" in refusal(read, tmp_path / "other.npz")
  with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(tmp_path / "twice.npz", "w") as file:
    for _ in range(2):
      file.writestr("x.npy", header(shape="()") + bytes(4))
  assert "x: found two arrays of this name" in refusal(read, tmp_path / "twice.npz")


def test_encryption_and_other_compressions(tmp_path):
  for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
    path = archive(tmp_path / "a.npz", header() + bytes(12000), method)
    assert f"compression method {method}" in refusal(read, path)
  data = bytearray(archive(path, header() + bytes(12000)).read_bytes())
  data[6] |= 1
  data[data.rindex(b"PK\1\2") + 8] |= 1
  path.write_bytes(data)
  assert "encrypted" in refusal(read, path)


def test_a_pipe_does_not_block(tmp_path):
  os.mkfifo(tmp_path / "a.npz")
  assert "found a pipe or a device, expected a regular file: an .npz" in refusal(read, tmp_path / "a.npz")
  assert "pipe" in refusal(npz.read_npy, tmp_path / "a.npz")


def test_threads_read_at_the_same_time(tmp_path):
  np.savez(tmp_path / "a.npz", **VALUES)
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for got in pool.map(lambda _: read(tmp_path / "a.npz", "float"), range(200)):
      np.testing.assert_array_equal(got, VALUES["float"])


def test_numbers_become_float32_or_one_line():
  for array in (np.float64([[1.5, -3e38]]), np.int64([7]), np.uint8([255]), np.float16(2), np.zeros((0, 3))):
    got = npz.to_float32("a.npz", "exp", array)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, array, rtol=1e-7)
  for array, message in (
      (np.array([[0, 0], [0, 1e300]]), "a.npz: exp, frame 1: found 1e+300, expected finite numbers"),
      (np.array([[0, 0], [0, 3.5e38]]), "exp, frame 1: found 3.5e+38"),
      (np.array([[-np.inf, 0], [0, np.nan]]), "exp, frame 0: found -inf"),
      (np.array([["x"]]), r"exp: found <U1 of shape (1, 1), expected numbers"),
      (np.array([True]), "exp: found bool of shape (1,)"),
      (np.array([1j]), "exp: found complex128"),
  ):
    with pytest.raises(InputError) as error:
      npz.to_float32("a.npz", "exp", array, "frame")
    assert message in str(error.value)
  with pytest.raises(InputError, match="a.npz: exp: found nan"):
    npz.to_float32("a.npz", "exp", np.array([np.nan]))


def test_a_member_that_unpacks_to_more_or_less_than_it_says(tmp_path):
  """The directory's size and the header agree, the stream behind them holds another number of bytes."""
  for rows, message in ((59, "unreadable: Bad CRC-32"), (61, "(cut off)")):
    path = archive(tmp_path / "a.npz", header(shape=f"({rows}, 50)") + bytes(12000), zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\1\2")
    data[place + 24 : place + 28] = (len(header(shape=f"({rows}, 50)")) + rows * 200).to_bytes(4, "little")
    path.write_bytes(data)
    assert message in refusal(read, path)
