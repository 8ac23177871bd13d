"""What real microphones, rooms and lines do to generated lips: the same clips heard under several conditions."""

import zlib
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from jaxtyping import Float

from rsatalker_jax.data import sound
from rsatalker_jax.data.sound.chain import make_room
from rsatalker_jax.data.sound.degradations import TELEPHONE
from rsatalker_jax.evaluation.cases import Case
from rsatalker_jax.evaluation.lip_metrics import LipScores
from rsatalker_jax.evaluation.tables import Column, Table
from rsatalker_jax.types import Motion

CLEAN = "clean"
# Metres and seconds: someone 60 cm from a laptop in a small furnished room.
_SMALL_ROOM = dict(size=(3.0, 3.6, 2.5), mouth=(1.3, 1.5, 1.3), microphone=(1.7, 1.9, 1.1), seconds=0.3)

Wav = Float[np.ndarray, "S"]


def _in_noise(decibels: float) -> Callable[[Wav], Wav]:
  """Pink noise under a voice, for each voice its own."""

  def add(wav: Wav) -> Wav:
    rng = np.random.default_rng(zlib.crc32(np.ascontiguousarray(wav, np.float32).tobytes()))
    return sound.add_noise(wav, sound.make_noise("pink", wav, rng), decibels)

  return add


# What becomes of both voices, by name. Louder than full scale is not clipped.
CONDITIONS: Mapping[str, Callable[[Wav], Wav]] = {
    CLEAN: lambda wav: wav,
    "12 dB louder": lambda wav: sound.amplify(wav, 12),
    "12 dB quieter": lambda wav: sound.amplify(wav, -12),
    "noise at 20 dB": _in_noise(20),
    "noise at 10 dB": _in_noise(10),
    "small room": lambda wav: sound.reverberate(wav, make_room(**_SMALL_ROOM)) if wav.any() else wav,
    "telephone band": lambda wav: sound.limit_band(wav, TELEPHONE),
}

_COLUMNS = {
    "truth/lips/correlation": Column("opening while speaking, r", "against the truth"),
    "truth/lips/bilabials": Column("bilabials closed", "against the truth"),
    "truth/lips/false_closures": Column("closed in error", "against the truth"),
    "clean/lips/correlation": Column("r", "against the clean voice's own lips"),
    "clean/size": Column("times as wide", "against the clean voice's own lips"),
}


def score_conditions(
    generate: Callable[[Case], Motion],
    hear: Callable[[Callable[[Wav], Wav]], Iterable[Case]],
    opening: Callable[[Motion], Float[np.ndarray, "T"]],
) -> dict[str, dict[str, float]]:
  """Scores of the lips under each of `CONDITIONS`.

  Args:
    generate: B's motion of a case.
    hear: the cases, always the same and in the same order, with voices to which this was done. `speaking` is that of the clean voice.
      Cases without true motion are compared with the clean output alone.
    opening: of the lips, in metres (`head.LipOpening`).

  Returns:
    By condition "truth/…" and "clean/…", the scores of `LipScores` against the true lips and against those that the clean voice
    gives; and "clean/size", the standard deviation of the opening over all frames with speech, in that of the clean voice's.
  """
  clean: list[Float[np.ndarray, "_"]] = []
  results = {}
  for name, change in CONDITIONS.items():
    truth, own, squares = LipScores(), LipScores(), np.zeros(2)
    for number, case in enumerate(hear(change)):
      lips = opening(generate(case))
      if name == CLEAN:
        clean.append(lips)
      if case.clip.motion_b is not None:
        truth.add(lips, opening(case.clip.motion_b), case.speaking, case.closures)
      own.add(lips, clean[number], case.speaking)
      if case.speaking.any():
        squares += [np.var(x[case.speaking]) * np.count_nonzero(case.speaking) for x in (lips, clean[number])]
    scores = {f"truth/{key}": value for key, value in truth.scores().items()}
    scores |= {f"clean/{key}": value for key, value in own.scores().items()}
    results[name] = scores | ({"clean/size": float(np.sqrt(squares[0] / squares[1]))} if squares[1] else {})
  return results


def robustness_table(results: Mapping[str, Mapping[str, float]]) -> Table:
  """A row for each condition; columns that none has are left out."""
  columns = {name: column for name, column in _COLUMNS.items() if any(name in scores for scores in results.values())}
  return Table(list(columns.values()), {title: [scores.get(name) for name in columns] for title, scores in results.items()})
