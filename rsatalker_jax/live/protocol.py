"""What page and server say to each other over one WebSocket, whose conversation lasts as long as it does.

The page sends, for every 40 ms of A's microphone and nothing else, a binary message, little-endian:

    number      uint32          0, 1, 2, … without a gap: the only clock that there is
    sound       640 int16       A's, 16 kHz
    motion      56 float32      A's, where the page knows it; the message may end before it

and is answered, in this order, once for each:

    number      uint32          of the frame that is answered
    flags       uint32          HOLD, VOICED, CUT
    motion      56 float32      B's
    sound       640 int16       B's, 16 kHz

Text is JSON with a "type". From the page: `Command`'s. To it:

    {"type": "ready", "frames_ahead": n}
    {"type": "saying", "text": …, "seconds": …}     a sentence or a recording is on its way
    {"type": "heard", "turn": n, "text": …}         what A has said in this turn so far
    {"type": "cut"}                                 A has interrupted B
    {"type": "recording", "name": …}                what is said is recorded from now on, under that name
    {"type": "recorded", "message": …}              and no longer
    {"type": "trouble", "message": …}               something was refused; the conversation goes on
    {"type": "end", "message": …}                   it ends, and the socket is closed
"""

import json
import struct
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rsatalker_jax.errors import InputError
from rsatalker_jax.social import parse_relation
from rsatalker_jax.types import MOTION_DIM, SAMPLES_PER_FRAME

# B speaks in this frame or the next few: the page holds some sound back, so that a late frame is not heard.
HOLD = 1
# There is sound in this frame: the page plays it at its own speed.
VOICED = 2
# What has not been heard of the frames before this one shall not be.
CUT = 4

_NUMBER, _ANSWER = struct.Struct("<I"), struct.Struct("<II")
_SOUND, _MOTION = 2 * SAMPLES_PER_FRAME, 4 * MOTION_DIM
MOST_BYTES = 4096  # Of any message of the page.
LONGEST_TEXT = 500  # Characters to say.
_LARGEST = 10.0  # Of a motion: coefficients and radians.


def parse_frame(data: bytes) -> tuple[int, Int[np.ndarray, "640"], Float[np.ndarray, "56"] | None]:
  """Number, A's sound and A's motion of a frame of the page.

  Raises:
    InputError: it is none.
  """
  sizes = _NUMBER.size + _SOUND, _NUMBER.size + _SOUND + _MOTION
  if len(data) not in sizes:
    raise InputError("frame", "", f"{len(data)} bytes", " or ".join(map(str, sizes)))
  sound = np.frombuffer(data, "<i2", SAMPLES_PER_FRAME, _NUMBER.size).astype(np.int16)
  motion = None
  if len(data) == sizes[1]:
    motion = np.frombuffer(data, "<f4", MOTION_DIM, sizes[0]).astype(np.float32)
    if not (np.abs(motion) <= _LARGEST).all():
      raise InputError("frame", "motion", "values that are not finite or large", f"numbers from -{_LARGEST:g} to {_LARGEST:g}")
  return _NUMBER.unpack_from(data)[0], sound, motion


def make_frame(number: int, sound: Int[np.ndarray, "640"], motion: Float[np.ndarray, "56"] | None = None) -> bytes:
  """The inverse of `parse_frame`, which tests and other clients send."""
  return _NUMBER.pack(number) + sound.astype("<i2").tobytes() + (b"" if motion is None else motion.astype("<f4").tobytes())


def make_answer(number: int, flags: int, motion: Float[np.ndarray, "56"], sound: Int[np.ndarray, "640"]) -> bytes:
  return _ANSWER.pack(number, flags) + motion.astype("<f4").tobytes() + sound.astype("<i2").tobytes()


def parse_answer(data: bytes) -> tuple[int, int, Float[np.ndarray, "56"], Int[np.ndarray, "640"]]:
  """The inverse of `make_answer`."""
  number, flags = _ANSWER.unpack_from(data)
  motion = np.frombuffer(data, "<f4", MOTION_DIM, _ANSWER.size)
  return number, flags, motion, np.frombuffer(data, "<i2", SAMPLES_PER_FRAME, _ANSWER.size + _MOTION)


def _checked(name: str, value: Any, kind: type, expected: str, fits=lambda value: True) -> Any:
  if type(value) is not kind or not fits(value):
    raise InputError("message", name, repr(value), expected)
  return value


def _check_text(value: Any) -> str:
  return _checked("text", value, str, f"1 to {LONGEST_TEXT} characters", lambda text: 0 < len(text.strip()) <= LONGEST_TEXT)


# By type: the one key of each command, and how its value is checked.
_COMMANDS = {
    "relation": ("relation", lambda x: parse_relation(_checked("relation", x, str, "a relation"), source="message")),
    "say": ("text", _check_text),
    "write": ("text", _check_text),
    "play": ("recording", lambda x: _checked("recording", x, int, "the number of a recording", lambda x: x >= 0)),
    "headphones": ("on", lambda x: _checked("on", x, bool, "true or false")),
    "stop": (None, None),
    "record": ("on", lambda x: _checked("on", x, bool, "true or false")),
}


def parse_command(text: str) -> tuple[str, Any]:
  """Type and value of a text message of the page.

  Raises:
    InputError: it is none.
  """
  try:
    data = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise InputError("message", "", error, "JSON") from None
  kind = data.get("type") if isinstance(data, dict) else None
  if not isinstance(kind, str) or kind not in _COMMANDS:
    raise InputError("message", "type", repr(kind), " | ".join(_COMMANDS))
  key, check = _COMMANDS[kind]
  if set(data) != {"type", key} - {None}:
    raise InputError("message", kind, ", ".join(data), "type" if key is None else f"type, {key}")
  return kind, None if check is None else check(data[key])
