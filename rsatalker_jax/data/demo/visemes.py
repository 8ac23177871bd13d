"""Lips and jaw from timed phones: targets per phone, blended by dominance functions.

Co-articulation follows Cohen & Massaro, "Modeling coarticulation in synthetic visual speech" (1993): each phone pulls
every lip parameter towards its target with a strength that decays exponentially with the distance in time, and how wide
and how strongly depends on the phone. So rounding starts before W, and a vowel between two labials opens less. A closure
gate afterwards guarantees what blending alone does not: lips meet on P, B and M.
"""

from collections.abc import Sequence
import dataclasses
import functools

from jaxtyping import Float
import numpy as np

from rsatalker_jax.errors import InputError

# A timed phone: ARPAbet symbol without stress digit, start and end in seconds.
Phone = tuple[str, float, float]

LIP_SHAPES = (
    "jawOpening", "mouthClose", "mouthFunnel", "mouthPucker", "mouthPress", "mouthRollLower", "mouthRollUpper",
    "mouthLowerDown", "mouthUpperUp", "mouthStretch", "mouthShrugUpper", "mouthShrugLower", "mouthDimple", "jawForward",
    "cheekPuff",
)
_SHORT = dict(zip(("jaw", "close", "funnel", "pucker", "press", "roll_lower", "roll_upper", "lower", "upper", "stretch",
                   "shrug_upper", "shrug_lower", "dimple", "forward", "puff"), range(len(LIP_SHAPES)), strict=True))

# Targets: jaw in radians, shapes in [0, 1]; what is not listed is 0.
_VOWELS = {
    "AA": dict(jaw=0.22, lower=0.30, upper=0.12, funnel=0.10),
    "AE": dict(jaw=0.20, lower=0.35, upper=0.20, stretch=0.30),
    "AH": dict(jaw=0.15, lower=0.25, upper=0.10),
    "AO": dict(jaw=0.18, funnel=0.35, pucker=0.20, lower=0.15),
    "EH": dict(jaw=0.16, lower=0.30, upper=0.15, stretch=0.25),
    "ER": dict(jaw=0.10, funnel=0.28, pucker=0.15, lower=0.15),
    "IH": dict(jaw=0.11, lower=0.25, upper=0.12, stretch=0.25),
    "IY": dict(jaw=0.07, lower=0.30, upper=0.15, stretch=0.50, dimple=0.20),
    "UH": dict(jaw=0.11, funnel=0.30, pucker=0.35),
    "UW": dict(jaw=0.06, funnel=0.25, pucker=0.75),
}
# Glides: the mouth moves from one vowel's shape to another's.
_DIPHTHONGS = {"AW": ("AA", "UW"), "AY": ("AA", "IY"), "EY": ("EH", "IY"), "OW": ("AO", "UW"), "OY": ("AO", "IY")}
_CLOSED = dict(jaw=0.03, press=0.30, roll_lower=0.15, roll_upper=0.12)
_ALVEOLAR = dict(jaw=0.07, lower=0.20, upper=0.08)
_SIBILANT = dict(jaw=0.03, lower=0.32, upper=0.18, stretch=0.25)
_HUSHER = dict(jaw=0.04, funnel=0.40, pucker=0.20, lower=0.20, forward=0.15)
_VELAR = dict(jaw=0.09, lower=0.15)
_CONSONANTS = {
    "P": _CLOSED | dict(puff=0.12), "B": _CLOSED | dict(puff=0.08), "M": _CLOSED,
    "F": dict(jaw=0.05, roll_lower=0.50, upper=0.30), "V": dict(jaw=0.05, roll_lower=0.45, upper=0.28),
    "TH": dict(jaw=0.08, lower=0.25, upper=0.12), "DH": dict(jaw=0.08, lower=0.22, upper=0.10),
    "T": _ALVEOLAR, "D": _ALVEOLAR, "N": _ALVEOLAR, "L": _ALVEOLAR | dict(jaw=0.09),
    "S": _SIBILANT, "Z": _SIBILANT, "SH": _HUSHER, "ZH": _HUSHER, "CH": _HUSHER, "JH": _HUSHER,
    "K": _VELAR, "G": _VELAR, "NG": _VELAR, "HH": dict(jaw=0.10, lower=0.10),
    "R": dict(jaw=0.08, funnel=0.25, pucker=0.25), "W": dict(jaw=0.05, funnel=0.20, pucker=0.85),
    "Y": dict(jaw=0.06, stretch=0.40, lower=0.20),
}
BILABIALS = frozenset("PBM")
VOWELS = frozenset(_VOWELS) | frozenset(_DIPHTHONGS)
PHONES = VOWELS | frozenset(_CONSONANTS)

# Reach of a phone's influence, seconds to fall to 1/e, and its strength beside neighbours.
_REACH = {"W": 0.09, "UW": 0.09, "AO": 0.08, "UH": 0.08, "P": 0.025, "B": 0.025, "M": 0.025, "F": 0.03, "V": 0.03}
_STRENGTH = {"P": 2.0, "B": 2.0, "M": 2.0, "F": 2.0, "V": 2.0, "W": 2.0, "SH": 1.5, "CH": 1.5, "JH": 1.5, "ZH": 1.5,
             "S": 1.2, "Z": 1.2, "T": 0.5, "D": 0.5, "N": 0.5, "L": 0.6, "K": 0.4, "G": 0.4, "NG": 0.4, "HH": 0.2}
_DEFAULT_REACH, _REST_REACH, _REST_STRENGTH = 0.042, 0.06, 0.8
_REST_AFTER = 0.10  # A pause this long (seconds) lets the mouth go back to rest.

_CLOSURE_RELEASE = 0.04  # Seconds from closed lips to free movement.
# mouthClose at 1 closes the lips over a jaw this far open (radians; the demo head's `jaw_open_angle`).
JAW_OPEN_ANGLE = 0.4256
_JAW_LIMIT = 0.34        # Radians; approached smoothly.


@dataclasses.dataclass(frozen=True)
class Lips:
  """Lip parameters of one speaker.

  Attributes:
    shapes: (T, 15) in the order of LIP_SHAPES; jaw in radians.
    rounding: (T,) in [0, 1], how far the lips are rounded.
    closure: (T,) in [0, 1], 1 where a bilabial closes the lips.
  """

  shapes: Float[np.ndarray, "T 15"]
  rounding: Float[np.ndarray, "T"]
  closure: Float[np.ndarray, "T"]


@functools.cache
def _target(symbol: str) -> Float[np.ndarray, "15"]:
  target = np.zeros(len(LIP_SHAPES))
  for name, value in (_VOWELS | _CONSONANTS)[symbol].items():
    target[_SHORT[name]] = value
  return target


def check_phones(phones: Sequence[Phone], source: object) -> None:
  """Raises InputError at the first phone that is no ARPAbet symbol or runs backwards."""
  for symbol, start, end in phones:
    if symbol not in PHONES:
      raise InputError(source, "phones", repr(symbol), "an ARPAbet phone without stress digit")
    if not end > start:
      raise InputError(source, "phones", f"{symbol} from {start} to {end} s", "an end after the start")


def _expand(phones: Sequence[Phone], loudness: Sequence[float]):
  """Splits diphthongs in two and puts rests into pauses: (symbol or None, start, end, loudness) each."""
  items, previous_end = [], -1.0
  for (symbol, start, end), loud in zip(phones, loudness, strict=True):
    if start - previous_end > _REST_AFTER:
      items.append((None, previous_end, start, 1.0))
    if symbol in _DIPHTHONGS:
      middle = start + 0.55 * (end - start)
      first, second = _DIPHTHONGS[symbol]
      items += [(first, start, middle, loud), (second, middle, end, loud)]
    else:
      items.append((symbol, start, end, loud))
    previous_end = end
  items.append((None, previous_end, previous_end + 3600.0, 1.0))
  return items


def lip_motion(phones: Sequence[Phone], times: Float[np.ndarray, "T"], *, articulation: float = 1.0,
               loudness: Sequence[float] | None = None) -> Lips:
  """Lips at given times.

  Args:
    phones: timed phones in order, in seconds.
    times: (T,) seconds.
    articulation: scale of vowel opening; 1 is plain speech.
    loudness: of each phone, relative to the speaker's mean; 1 for all if None.

  Returns:
    Lips. With no phones: rest.
  """
  if not phones:
    zeros = np.zeros(len(times))
    return Lips(np.zeros((len(times), len(LIP_SHAPES))), zeros, zeros)
  items = _expand(phones, loudness if loudness is not None else np.ones(len(phones)))
  start, end = np.array([i[1] for i in items]), np.array([i[2] for i in items])
  rest = np.array([i[0] is None for i in items])
  targets = np.stack([np.zeros(len(LIP_SHAPES)) if i[0] is None else _target(i[0]) for i in items])
  reach = np.array([_REST_REACH if i[0] is None else _REACH.get(i[0], _DEFAULT_REACH) for i in items])
  strength = np.array([_REST_STRENGTH if i[0] is None else _STRENGTH.get(i[0], 1.0) for i in items])
  # Louder vowels open wider; consonants keep their shape (a loud P is as closed as a soft one).
  vowel = np.array([i[0] in _VOWELS for i in items])
  loud = np.clip([i[3] for i in items], 0.5, 1.6)
  opening = np.where(vowel, articulation * (0.65 + 0.5 * loud), np.where(rest, 1.0, np.minimum(articulation, 1.1)))
  for name in ("jaw", "lower", "upper", "stretch"):
    targets[:, _SHORT[name]] *= opening

  # Dominance: 1 in the phone's core, exponential decay outside. A rest's core is its whole pause.
  shrink = np.where(rest, 0.04, 0.3 * (end - start))
  outside = np.maximum(np.abs(times[:, None] - 0.5 * (start + end)) - (0.5 * (end - start) - shrink), 0.0)
  dominance = (strength * np.exp((-outside / reach).astype(np.float32))).astype(np.float64)  # (T, phones)
  shapes = dominance @ targets / (np.sum(dominance, axis=1, keepdims=True) + 1e-9)
  rounding = np.clip(shapes[:, _SHORT["pucker"]] / 0.7, 0.0, 1.0)

  closure = closure_gate(phones, times)
  held = closure[:, None]
  shapes = (1.0 - held) * shapes + held * (_target("M") + _kept_when_closed() * shapes)
  # With the jaw a little open, mouthClose brings the lips together.
  shapes[:, _SHORT["close"]] = closure * shapes[:, 0] / JAW_OPEN_ANGLE
  jaw = shapes[:, 0]
  shapes[:, 0] = _JAW_LIMIT * np.tanh(jaw / _JAW_LIMIT)
  return Lips(shapes, rounding, closure)


@functools.cache
def _kept_when_closed() -> Float[np.ndarray, "15"]:
  """How much of each shape stays under closed lips: only shapes that do not part them."""
  kept = np.zeros(len(LIP_SHAPES))
  for name, share in dict(pucker=0.6, dimple=0.8, forward=1.0, puff=1.0).items():
    kept[_SHORT[name]] = share
  return kept


def closure_gate(phones: Sequence[Phone], times: Float[np.ndarray, "T"]) -> Float[np.ndarray, "T"]:
  """1 while a bilabial is held (at least at the frame nearest to its centre), falling to 0 within 40 ms around it."""
  bilabial = [(start, end) for symbol, start, end in phones if symbol in BILABIALS]
  if not bilabial:
    return np.zeros(len(times))
  start, end = np.array(bilabial).T
  centre = 0.5 * (start + end)
  # At 25 fps a short closure can fall between two frames: hold it for one frame at least.
  half = np.maximum(0.5 * (end - start) - 0.02, 0.5 * (times[1] - times[0] if len(times) > 1 else 0.04))
  distance = np.abs(times[:, None] - centre) - half
  gate = np.clip(1.0 - distance / _CLOSURE_RELEASE, 0.0, 1.0)
  return np.max(gate, axis=1)


def stress(phones: Sequence[Phone], loudness: Sequence[float] | None = None) -> list[tuple[float, float]]:
  """Stressed vowels as (centre in seconds, emphasis in (0, 1.5]): longer and louder than the speaker's usual."""
  vowels = [(k, start, end) for k, (symbol, start, end) in enumerate(phones) if symbol in VOWELS]
  if not vowels:
    return []
  median = float(np.median([end - start for _, start, end in vowels]))
  beats = []
  for k, start, end in vowels:
    loud = 1.0 if loudness is None else loudness[k]
    emphasis = min(0.7 * ((end - start) / median - 1.0) + 0.8 * (loud - 1.0), 1.5)
    if emphasis > 0.25:
      beats.append((0.5 * (start + end), emphasis))
  return beats
