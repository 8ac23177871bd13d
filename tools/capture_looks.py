"""How the captured people look: colours and hair, by the name of the head's identity. Albedos are linear RGB."""

import dataclasses

Colour = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Look:
  """What the painter and the hairdresser need to know of a person.

  Attributes:
    skin: albedo where neither pigment is thicker than usual.
    melanin, blood: how much a unit of each pigment takes of red, green and blue (Beer's law).
    freckles: their strength. moles: how many. stubble: how visible the beard's shadow is, 0..1.
    lips: albedo. scalp: albedo under the hair.
    iris: albedo round the pupil and outside. sclera: albedo of the white.
    hair: "short" (swept up, close at the sides) or "long" (parted, down to the shoulders).
    hair_colour, brow_colour, lash_colour: mean albedo of a strand.
    brow_width: factor on the brows' width. lash_length: factor on the upper lashes' length.
  """

  skin: Colour
  melanin: Colour
  blood: Colour
  freckles: float
  moles: int
  stubble: float
  lips: Colour
  scalp: Colour
  iris: tuple[Colour, Colour]
  sclera: Colour
  hair: str
  hair_colour: Colour
  brow_colour: Colour
  brow_width: float
  lash_colour: Colour
  lash_length: float


LOOKS = {
    # A fair man with short brown hair, stubble and amber-green eyes.
    "jonas": Look(
        skin=(0.62, 0.42, 0.325), melanin=(0.55, 0.85, 1.1), blood=(0.10, 0.42, 0.36), freckles=1.0, moles=26, stubble=1.0,
        lips=(0.50, 0.235, 0.205), scalp=(0.075, 0.050, 0.035), iris=((0.26, 0.17, 0.07), (0.10, 0.19, 0.22)),
        sclera=(0.78, 0.75, 0.71), hair="short", hair_colour=(0.105, 0.066, 0.040), brow_colour=(0.070, 0.044, 0.028),
        brow_width=1.0, lash_colour=(0.018, 0.012, 0.009), lash_length=1.0),
    # A dark woman with long black-brown hair and brown eyes.
    "amara": Look(
        skin=(0.200, 0.098, 0.056), melanin=(0.50, 0.62, 0.72), blood=(0.06, 0.22, 0.22), freckles=0.25, moles=9, stubble=0.0,
        lips=(0.190, 0.060, 0.052), scalp=(0.022, 0.016, 0.012), iris=((0.050, 0.022, 0.009), (0.022, 0.010, 0.005)),
        sclera=(0.74, 0.70, 0.65), hair="long", hair_colour=(0.030, 0.020, 0.014), brow_colour=(0.016, 0.011, 0.008),
        brow_width=0.72, lash_colour=(0.010, 0.008, 0.007), lash_length=1.35),
}
