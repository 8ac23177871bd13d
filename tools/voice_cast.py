"""Who speaks in the demo's dialogues: twelve voices, and in which dialogue each is heard.

A voice is a model with its style, not a person: each dialogue makes other persons of it, of another size and rate. Nothing that
a voice of the test dialogues is made of is heard in a training dialogue.
"""

import dataclasses

# Their films exist (assets/capture): the motion in them follows these dialogues' phones and levels, which therefore stay.
FILMED = ("d003", "d009", "d040", "d050")


@dataclasses.dataclass(frozen=True)
class Voice:
  """One voice.

  Attributes:
    engine: "hibari", "kokoro" or "flite".
    parts: the engine's voices that it is mixed of, with their weights, which sum to 1.
    sex: "female" or "male".
    split: of the dialogues in which it is heard.
    sizes: range of a person's size, the factor on pitch and formants.
    pace: factor on the engine's rate, for voices that hurry more than others.
  """

  engine: str
  parts: tuple[tuple[str, float], ...]
  sex: str
  split: str
  sizes: tuple[float, float]
  pace: float = 1.0

  @property
  def name(self) -> str:
    return f"{self.engine}-{'+'.join(part for part, _ in self.parts)}"


# Sizes keep women's medians between 170 and 280 Hz and men's between 85 and 130 Hz, whatever the model's own.
HEART = Voice("hibari", (("heart", 1.0),), "female", "train", (0.95, 1.07))
KUMO = Voice("kokoro", (("jm_kumo", 1.0),), "male", "train", (1.0, 1.16))
VOICES = (
    HEART,
    Voice("kokoro", (("jf_alpha", 1.0),), "female", "train", (0.88, 0.98), pace=0.9),
    Voice("kokoro", (("jf_gongitsune", 1.0),), "female", "train", (0.93, 1.05)),
    KUMO,
    Voice("kokoro", (("jm_kumo", 0.7), ("jf_alpha", 0.3)), "male", "train", (0.88, 0.98)),
    Voice("flite", (("cmu_us_slt", 1.0),), "female", "train", (1.02, 1.2)),
    Voice("kokoro", (("jm_kumo", 0.7), ("jf_gongitsune", 0.3)), "male", "train", (0.8, 1.0)),
    Voice("flite", (("cmu_us_kal16", 1.0),), "male", "train", (1.0, 1.2)),
    Voice("kokoro", (("jf_tebukuro", 1.0),), "female", "val", (0.76, 0.86)),
    Voice("flite", (("cmu_us_awb", 1.0),), "male", "val", (0.82, 0.98)),
    Voice("kokoro", (("jf_nezumi", 1.0),), "female", "test", (0.92, 1.04)),
    Voice("flite", (("cmu_us_rms", 1.0),), "male", "test", (0.93, 1.1)),
)


def cast(split: str, index: int, dialogue: str) -> dict[str, Voice]:
  """The two voices of a dialogue, "female" and "male".

  Args:
    split: the dialogue's.
    index: its place among its split's dialogues of the same relation. Voices take turns, so that they tell no relation.
    dialogue: its id.
  """
  if split == "train" and dialogue in FILMED:
    return {"female": HEART, "male": KUMO}
  found = {}
  for sex in ("female", "male"):
    voices = [voice for voice in VOICES if voice.sex == sex and voice.split == split]
    found[sex] = voices[index % len(voices)]
  return found
