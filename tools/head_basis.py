"""Which MakeHuman targets make the demo head's shape components, people and expressions.

A shape component is a signed sum of targets; coefficient 1 is the full step. The components carry names, so that a
person can be described in words; nothing in the code that reads the head depends on the names.
"""

import numpy as np
from makehuman import Wheel

_RACES = ("african", "asian", "caucasian")


def _both(name: str) -> dict[str, float]:
  """The left and the right target of a paired feature."""
  return {name.replace("?", side): 1.0 for side in "lr"}


def _opposite(base: str, plus: str, minus: str) -> dict[str, float]:
  """Half the way between two opposite targets, "?" standing for both sides."""
  sides = "lr" if "?" in base else [""]
  parts = {}
  for side in sides:
    parts[f"{base}{plus}".replace("?", side)] = 0.5
    parts[f"{base}{minus}".replace("?", side)] = -0.5
  return parts


def _macro(race: str, gender: str, age: str) -> str:
  return f"macrodetails/{race}-{gender}-{age}"


def average_person() -> dict[str, float]:
  """Targets of the template: the mean of young women and men of MakeHuman's three groups."""
  return {_macro(r, g, "young"): 1 / 6 for r in _RACES for g in ("female", "male")}


def shape_components() -> dict[str, dict[str, float]]:
  """Name -> {target: weight} of each shape component, in the order of `shapedirs`."""
  def contrast(plus, minus):
    return {**plus, **{k: plus.get(k, 0.0) - v for k, v in minus.items()}}

  def group(race):
    others = [r for r in _RACES if r != race]
    plus = {_macro(race, g, "young"): 1 / 3 for g in ("female", "male")}
    return {**plus, **{_macro(r, g, "young"): -1 / 6 for r in others for g in ("female", "male")}}

  def body(kind_plus, kind_minus):
    return {**{f"macrodetails/universal-{g}-young-{kind_plus}": 0.25 for g in ("female", "male")},
            **{f"macrodetails/universal-{g}-young-{kind_minus}": -0.25 for g in ("female", "male")}}

  return {
      "male": {**{_macro(r, "male", "young"): 1 / 6 for r in _RACES},
               **{_macro(r, "female", "young"): -1 / 6 for r in _RACES}},
      "old": contrast({_macro(r, g, "old"): 1 / 6 for r in _RACES for g in ("female", "male")},
                      {_macro(r, g, "young"): 1 / 6 for r in _RACES for g in ("female", "male")}),
      "african": group("african"),
      "asian": group("asian"),
      "heavy": body("averagemuscle-maxweight", "averagemuscle-minweight"),
      "muscular": body("maxmuscle-averageweight", "minmuscle-averageweight"),
      "face_round": {"head/head-round": 0.6, "head/head-rectangular": -0.4, "head/head-triangular": -0.2},
      "face_square": {"head/head-square": 0.6, "head/head-oval": -0.6},
      "head_wide": _opposite("head/head-scale-horiz-", "incr", "decr"),
      "head_tall": _opposite("head/head-scale-vert-", "incr", "decr"),
      "forehead_tall": _opposite("forehead/forehead-scale-vert-", "incr", "decr"),
      "brow_heavy": {**_opposite("eyebrows/eyebrows-trans-", "forward", "backward"),
                     **_opposite("eyebrows/eyebrows-trans-", "down", "up")},
      "eyes_large": _opposite("eyes/?-eye-scale-", "incr", "decr"),
      "eyes_apart": _opposite("eyes/?-eye-trans-", "out", "in"),
      "eyes_slanted": {**_opposite("eyes/?-eye-corner2-", "up", "down"), **_opposite("eyes/?-eye-corner1-", "down", "up")},
      "nose_long": {**_opposite("nose/nose-scale-vert-", "incr", "decr"), **_opposite("nose/nose-point-", "down", "up")},
      "nose_wide": {**_opposite("nose/nose-scale-horiz-", "incr", "decr"),
                    **_opposite("nose/nose-width3-", "incr", "decr"), **_opposite("nose/nose-flaring-", "incr", "decr")},
      "nose_deep": {**_opposite("nose/nose-scale-depth-", "incr", "decr"), **_opposite("nose/nose-hump-", "incr", "decr")},
      "cheekbones": {**_opposite("cheek/?-cheek-bones-", "incr", "decr"), **_opposite("cheek/?-cheek-volume-", "decr", "incr")},
      "jaw_wide": {**_opposite("chin/chin-width-", "incr", "decr"), **_opposite("chin/chin-bones-", "incr", "decr")},
      "chin_strong": {**_opposite("chin/chin-prominent-", "incr", "decr"), **_opposite("chin/chin-height-", "incr", "decr")},
      "mouth_wide": _opposite("mouth/mouth-scale-horiz-", "incr", "decr"),
      "lips_full": {**_opposite("mouth/mouth-upperlip-volume-", "incr", "decr"),
                    **_opposite("mouth/mouth-lowerlip-volume-", "incr", "decr"),
                    **_opposite("mouth/mouth-upperlip-height-", "incr", "decr"),
                    **_opposite("mouth/mouth-lowerlip-height-", "incr", "decr")},
      "ears_out": {**_opposite("ears/?-ear-wing-", "incr", "decr"), **_opposite("ears/?-ear-scale-", "incr", "decr")},
  }


# Ten people; what is not named is zero. Their names are the asset's `identity_names`.
PEOPLE: dict[str, dict[str, float]] = {
    "maya": dict(male=-1.0, asian=0.2, heavy=-0.1, face_round=0.3, eyes_large=0.8, lips_full=0.4, jaw_wide=-0.3, nose_long=-0.2, mouth_wide=0.3),
    "jonas": dict(male=1.0, face_square=0.5, brow_heavy=0.5, nose_deep=0.5, chin_strong=0.5, jaw_wide=0.3, muscular=0.4),
    "ruth": dict(male=-0.9, old=0.75, heavy=0.3, face_round=0.3, nose_long=0.5, ears_out=0.4, lips_full=-0.5),
    "arthur": dict(male=1.0, old=0.8, heavy=-0.5, nose_long=0.7, nose_deep=0.6, ears_out=0.7, head_tall=0.3, cheekbones=0.4),
    "amara": dict(male=-1.0, african=1.0, cheekbones=0.7, lips_full=0.5, eyes_slanted=0.4, head_wide=-0.3, heavy=-0.2),
    "kofi": dict(male=0.9, african=1.1, heavy=0.3, nose_wide=0.5, jaw_wide=0.5, brow_heavy=0.3, muscular=0.5),
    "mei": dict(male=-0.8, asian=1.1, face_round=0.7, nose_long=-0.2, nose_deep=-0.1, mouth_wide=-0.2, eyes_large=0.5, eyes_slanted=0.4),
    "hiro": dict(male=0.9, asian=1.0, old=0.3, face_square=0.6, cheekbones=0.5, forehead_tall=0.5, eyes_apart=0.4),
    "lena": dict(male=-0.9, heavy=1.3, face_round=1.0, eyes_apart=0.8, nose_wide=0.2, mouth_wide=0.3, chin_strong=-0.2, eyes_large=0.4),
    "victor": dict(male=1.0, old=0.45, heavy=1.0, head_wide=0.4, nose_wide=0.6, jaw_wide=0.6, lips_full=-0.4, brow_heavy=0.4),
}

EXPRESSION_NAMES = tuple("""browDownLeft browDownRight browInnerUp browOuterUpLeft browOuterUpRight cheekPuff
cheekSquintLeft cheekSquintRight eyeBlinkLeft eyeBlinkRight eyeLookDownLeft eyeLookDownRight eyeLookInLeft eyeLookInRight
eyeLookOutLeft eyeLookOutRight eyeLookUpLeft eyeLookUpRight eyeSquintLeft eyeSquintRight eyeWideLeft eyeWideRight jawForward
jawLeft jawRight mouthClose mouthDimpleLeft mouthDimpleRight mouthFrownLeft mouthFrownRight mouthFunnel mouthLeft
mouthLowerDownLeft mouthLowerDownRight mouthPressLeft mouthPressRight mouthPucker mouthRight mouthRollLower mouthRollUpper
mouthShrugLower mouthShrugUpper mouthSmileLeft mouthSmileRight mouthStretchLeft mouthStretchRight mouthUpperUpLeft
mouthUpperUpRight noseSneerLeft noseSneerRight""".split())


def combine(wheel: Wheel, parts: dict[str, float]) -> np.ndarray:
  """Sum of targets, (19158, 3) decimetres."""
  return sum(weight * wheel.target(name) for name, weight in parts.items())
