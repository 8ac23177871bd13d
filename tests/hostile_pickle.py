"""Pickles that a careless reader runs or believes: an object with a command, and instructions put together by hand."""

import os
import struct

import numpy as np


class Hostile:
  """Its pickle runs a command when a careless reader loads it."""

  def __init__(self, command: str):
    self.command = command

  def __reduce__(self):
    return os.system, (self.command,)


NONE, TRUE, FALSE = b"N", b"\x88", b"\x89"


def program(*instructions: bytes) -> bytes:
  return b"\x80\x02" + b"".join(instructions) + b"."


def name(module: str, function: str) -> bytes:
  return f"c{module}\n{function}\n".encode()


def text(value: str) -> bytes:
  return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def raw(value: bytes) -> bytes:
  return b"B" + struct.pack("<I", len(value)) + value


def number(value: int) -> bytes:
  return b"J" + struct.pack("<i", value)


def row(*items: bytes) -> bytes:
  return b"(" + b"".join(items) + b"t"


def call(function: bytes, *arguments: bytes) -> bytes:
  return function + row(*arguments) + b"R"


def fill(thing: bytes, state: bytes) -> bytes:
  return thing + state + b"b"


def items(**values: bytes) -> bytes:
  return b"}(" + b"".join(text(key) + value for key, value in values.items()) + b"u"


DTYPE, NDARRAY = name("numpy", "dtype"), name("numpy", "ndarray")
SCALAR, FROM_BUFFER = name("numpy.core.multiarray", "scalar"), name("numpy.core.numeric", "_frombuffer")
RECONSTRUCT = name("numpy.core.multiarray", "_reconstruct")


def dtype(code: str, state: bytes = b"") -> bytes:
  thing = call(DTYPE, text(code), FALSE, TRUE)
  return fill(thing, state) if state else thing


def array(values: np.ndarray, **changes: bytes) -> bytes:
  """As protocol 5 writes an array; raw, dtype, shape and order may be other instructions."""
  parts = dict(
      raw=raw(values.tobytes()), dtype=dtype(values.dtype.str[1:]), shape=row(*map(number, values.shape)), order=text("C")
  )
  return call(FROM_BUFFER, *(parts | changes).values())


def old_array(values: np.ndarray, **changes: bytes) -> bytes:
  """As protocol 2 writes an array."""
  parts = dict(
      version=number(1), shape=row(*map(number, values.shape)), dtype=dtype(values.dtype.str[1:]), fortran_order=FALSE,
      raw=raw(values.tobytes()),
  )
  return fill(call(RECONSTRUCT, NDARRAY, row(number(0)), raw(b"b")), row(*(parts | changes).values()))


def pointer_dtype() -> bytes:
  """A type of 8 bytes whose state says that they are a Python object, and no flag that tells so."""
  fields = b"}" + text("a") + row(dtype("O"), number(0)) + b"s"
  return dtype("V8", row(number(3), text("|"), NONE, row(text("a")), fields, number(8), number(1), number(0)))
