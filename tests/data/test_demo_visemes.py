"""Lips from phones: closures, rounding, opening, judged on the demo head's own lips."""

import pathlib

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from rsatalker_jax.data.demo import visemes
from rsatalker_jax.data.demo.expressions import COLUMN, EXPRESSION_NAMES, columns
from rsatalker_jax.errors import InputError

_HEAD = pathlib.Path(__file__).resolve().parents[2] / "assets" / "head" / "demo_head.npz"


def sequence(text: str, *, length: float = 0.08, start: float = 0.4) -> list[visemes.Phone]:
  """Phones of equal length in a row; `_` is a pause of four times the length."""
  phones, now = [], start
  for symbol in text.split():
    span = 4 * length if symbol == "_" else length
    if symbol != "_":
      phones.append((symbol, now, now + span))
    now += span
  return phones


def frame_times(phones, fps=25):
  return (np.arange(int((phones[-1][2] + 0.5) * fps)) + 0.5) / fps


def nearest_frames(phones, times, symbols):
  return [int(np.argmin(np.abs(times - 0.5 * (s + e)))) for symbol, s, e in phones if symbol in symbols]


class LipGap:
  """Distance between the demo head's inner lips in millimetres: two skinned vertices, computed here from the file."""

  def __init__(self):
    with np.load(_HEAD, allow_pickle=False) as head:
      vertices = head["lip_vertices"]
      template = head["v_template"].astype(np.float64)
      self.rest = template[vertices]
      self.basis = head["shapedirs"][vertices][:, :, int(head["n_shape"]):].astype(np.float64)
      self.correctives = head["posedirs"][vertices].astype(np.float64)
      self.jaw = head["J_regressor"][2].astype(np.float64) @ template
      self.weight = head["weights"][vertices, 2].astype(np.float64)
      assert tuple(head["expression_names"]) == EXPRESSION_NAMES

  def __call__(self, motion):
    gaps = []
    for row in motion:
      turn = Rotation.from_rotvec(row[50:53]).as_matrix()
      features = np.zeros(36)
      features[9:18] = (turn - np.eye(3)).ravel()
      posed = self.rest + self.basis @ row[:50] + self.correctives @ features
      turned = (posed - self.jaw) @ turn.T + self.jaw
      lips = posed + self.weight[:, None] * (turned - posed)
      gaps.append(1000 * (lips[0, 1] - lips[1, 1]))
    return np.array(gaps)


@pytest.fixture(scope="module")
def lip_gap():
  return LipGap()


def as_motion(lips: visemes.Lips) -> np.ndarray:
  motion = np.zeros((len(lips.shapes), 56))
  for k, shape in enumerate(visemes.LIP_SHAPES):
    for column in columns(shape):
      motion[:, column] = lips.shapes[:, k]
  return motion


def test_bilabials_close_between_open_vowels_even_when_short(lip_gap):
  for length in (0.03, 0.05, 0.09):
    phones = sequence("AA P AA B AE M AO P AA M IY B AA", length=length)
    times = frame_times(phones)
    motion = as_motion(visemes.lip_motion(phones, times, articulation=1.2))
    closed = lip_gap(motion[nearest_frames(phones, times, "PBM")])
    at_rest = lip_gap(np.zeros((1, 56)))[0]
    assert np.all(closed < at_rest + 1.0), (length, closed)  # Within 1 mm of a closed mouth.
    if length > 0.08:
      assert np.all(lip_gap(motion[nearest_frames(phones, times, ("AA",))]) > at_rest + 4.0)


def test_open_vowels_open_more_than_close_ones(lip_gap):
  opening = {}
  for vowel in ("AA", "AE", "EH", "IY", "UW"):
    phones = sequence(f"T {vowel} T", length=0.16)
    times = frame_times(phones)
    motion = as_motion(visemes.lip_motion(phones, times))
    opening[vowel] = float(lip_gap(motion[nearest_frames(phones, times, (vowel,))])[0])
  assert opening["AA"] > opening["EH"] > opening["UW"]
  assert opening["AE"] > opening["IY"]


def test_rounding_starts_before_w_and_differs_from_spreading():
  phones = sequence("T IY T UW W AA _ S IY")
  times = frame_times(phones)
  lips = visemes.lip_motion(phones, times)
  uw, iy = (nearest_frames(phones, times, (v,))[0] for v in ("UW", "IY"))
  pucker, stretch = visemes.LIP_SHAPES.index("mouthPucker"), visemes.LIP_SHAPES.index("mouthStretch")
  assert lips.shapes[uw, pucker] > 0.4 > lips.shapes[iy, pucker] + 0.2
  assert lips.shapes[iy, stretch] > 2 * lips.shapes[uw, stretch]
  before = nearest_frames(phones, times, ("T",))[1]  # The T before UW is rounded already, the first one is not.
  assert lips.shapes[before, pucker] > 2 * lips.shapes[nearest_frames(phones, times, ("T",))[0], pucker]


def test_f_and_v_bring_the_lower_lip_to_the_teeth():
  phones = sequence("AA F AA V AA")
  times = frame_times(phones)
  roll = visemes.lip_motion(phones, times).shapes[:, visemes.LIP_SHAPES.index("mouthRollLower")]
  assert np.min(roll[nearest_frames(phones, times, "FV")]) > 0.25
  assert np.max(roll[nearest_frames(phones, times, ("AA",))]) < 0.2


def test_loudness_opens_vowels_but_not_closures():
  phones = sequence("AA P AA")
  times = frame_times(phones)
  soft = visemes.lip_motion(phones, times, loudness=[0.6] * 3).shapes[:, 0]
  loud = visemes.lip_motion(phones, times, loudness=[1.5] * 3).shapes[:, 0]
  vowels, closure = nearest_frames(phones, times, ("AA",)), nearest_frames(phones, times, "P")
  assert np.all(loud[vowels] > 1.2 * soft[vowels])
  assert abs(loud[closure] - soft[closure]) < 0.02


def test_mouth_rests_in_pauses_and_without_speech():
  phones = sequence("AA T AA _ _ AA")
  times = frame_times(phones)
  shapes = visemes.lip_motion(phones, times).shapes
  pause = int((phones[2][2] + 0.3) * 25)
  assert np.abs(shapes[pause]).max() < 0.02
  assert not visemes.lip_motion([], times).shapes.any()


def test_stress_finds_the_long_vowel():
  phones = sequence("T AH T AH T AH T AH") + [("AA", 1.2, 1.45)]
  (beat,) = visemes.stress(phones)
  assert beat[0] == pytest.approx(1.325)


@pytest.mark.parametrize("phone", [("AA1", 0.0, 0.1), ("AA", 0.2, 0.1)])
def test_unknown_or_backward_phones_are_named(phone):
  with pytest.raises(InputError, match="dialogue d001: phones"):
    visemes.check_phones([phone], "dialogue d001")


def test_expression_names_are_in_alphabetical_order_and_complete():
  assert len(EXPRESSION_NAMES) == 50 and list(EXPRESSION_NAMES) == sorted(EXPRESSION_NAMES)
  assert columns("mouthSmile") == (COLUMN["mouthSmileLeft"], COLUMN["mouthSmileRight"]) and columns("jawForward") == (22,)
