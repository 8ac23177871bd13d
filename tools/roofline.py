"""A roofline estimate of a program on many chips: what the chip computes, what its memory moves, what goes between chips.

Nothing overlaps in it but arithmetic and memory within a chip, and both run at their peaks:

    seconds = max(FLOPs / peak, bytes / memory bandwidth) + sum over collectives of (bytes sent / interconnect + hops * latency)

Of the bytes there are two numbers: what has to be moved, all arguments and results once; and what is moved if no intermediate
result stays near the arithmetic. Efficiency is reckoned with the first, where communication weighs most.
"""

import dataclasses
from collections.abc import Iterable

from tools.hlo_traffic import Collective

GB, MB = 1e9, 1e6
# Seconds for a message of no length to the next chip: of the order of what "How to Scale Your Model" (jax-ml.github.io/scaling-book,
# chapter 3) gives for TPUs; the same is taken for NVLink.
HOP = 1e-6


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published numbers of a chip.

  Attributes:
    name: of the generation.
    flops: bfloat16 products with float32 sums, FLOPs a second.
    memory: bytes of its main memory.
    bandwidth: of that memory, bytes a second.
    link: bytes a second that one link to another chip carries one way.
    wraps: chips along an axis from which on its ends are joined (a torus); 0 for a switch, to which all links lead.
    source: of the numbers.
  """

  name: str
  flops: float
  memory: float
  bandwidth: float
  link: float
  wraps: int
  source: str


_CLOUD = "docs.cloud.google.com/tpu/docs/"
# Interconnect is published for both ways and all links of a chip together: 400 GB/s over 4 links are 50 GB/s each way of each.
CHIPS = {
    "v5e": Chip("TPU v5e", 197e12, 16 * 2**30, 819 * GB, 50 * GB, 16, _CLOUD + "v5e: 197 TFLOPs, 16 GB, 819 GB/s, 400 GB/s both ways"),
    "v5p": Chip("TPU v5p", 459e12, 95 * 2**30, 2765 * GB, 100 * GB, 4, _CLOUD + "v5p: 459 TFLOPs, 95 GB, 2765 GB/s, 4800 Gb/s"),
    "v6e": Chip("TPU v6e", 918e12, 32 * 2**30, 1638 * GB, 100 * GB, 16, _CLOUD + "v6e: 918 TFLOPs, 32 GB, 1638 GB/s, 800 GB/s both ways"),
    "h200": Chip(
        "H200", 989e12, 141 * GB, 4800 * GB, 450 * GB, 0, "NVIDIA's H200 data sheet: 989 TFLOPs dense, 141 GB, 4.8 TB/s, NVLink 900 GB/s both ways"
    ),
}  # fmt: skip
# How so many chips are laid out, for the scaling table; the largest of v5e and v6e have 256.
SLICES = {
    "v5e": {1: (1, 1), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)},
    "v6e": {1: (1, 1), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)},
    "v5p": {1: (1, 1, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4), 128: (4, 4, 8), 256: (4, 8, 8), 512: (8, 8, 8)},
    "h200": {1: (1,), 8: (8,)},
}


@dataclasses.dataclass(frozen=True)
class Cost:
  """What one chip does in one step.

  Attributes:
    flops: see `count_flops`.
    least: bytes that have to go through the chip's memory.
    memory: bytes that do.
    collectives: between chips.
  """

  flops: float
  least: float
  memory: float
  collectives: tuple[Collective, ...]

  @property
  def intensity(self) -> float:
    """FLOPs a byte of memory traffic."""
    return self.flops / self.memory

  @property
  def sent(self) -> float:
    """Bytes that a chip sends."""
    return sum(one.count * one.sent for one in self.collectives)


def chip_bandwidth(chip: Chip, shape: tuple[int, ...]) -> float:
  """Bytes a second that every chip of a slice can send at once: its links times theirs; where axes have ends, those of a corner."""
  if not chip.wraps:
    return chip.link
  links = sum(2 if size >= chip.wraps and size > 2 else 1 for size in shape if size > 1)
  return links * chip.link


def hops(chip: Chip, shape: tuple[int, ...]) -> int:
  """Chips that what has to reach all of a slice passes at least."""
  if not chip.wraps:
    return 1
  return sum(size // 2 if size >= chip.wraps and size > 2 else size - 1 for size in shape)


def collective_seconds(collectives: Iterable[Collective], chip: Chip, shape: tuple[int, ...]) -> float:
  """Seconds in which a slice has done them one after another. An all-reduce goes through the slice twice."""
  rate, distance = chip_bandwidth(chip, shape), hops(chip, shape)
  several = [one for one in collectives if one.group > 1]
  passes = lambda one: 2 if one.kind == "all-reduce" else 1
  return sum(one.count * (one.sent / rate + passes(one) * distance * HOP) for one in several)


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Seconds of a step.

  Attributes:
    compute, memory: of the chip, one beside the other.
    least: of the chip's memory, if nothing is moved that need not be.
    communication: behind them.
  """

  compute: float
  least: float
  memory: float
  communication: float

  @property
  def shortest(self) -> float:
    return max(self.compute, self.least) + self.communication

  @property
  def longest(self) -> float:
    return max(self.compute, self.memory) + self.communication

  @property
  def bound(self) -> str:
    """What most of the shortest step goes to."""
    names = {"compute": self.compute, "memory": self.least, "communication": self.communication}
    return max(names, key=names.get)

  @property
  def efficiency(self) -> float:
    """Share of the shortest step that is not communication: speed of a chip against one that works alone."""
    return 1 - self.communication / self.shortest

  def batch_for(self, efficiency: float) -> float:
    """How many times the batch has to be taken for this efficiency: arithmetic grows with it, communication does not."""
    return efficiency / (1 - efficiency) * self.communication / self.compute


def estimate(cost: Cost, chip: Chip, shape: tuple[int, ...]) -> Estimate:
  """The estimate for a slice of this shape."""
  moved = cost.least / chip.bandwidth, cost.memory / chip.bandwidth
  return Estimate(cost.flops / chip.flops, *moved, collective_seconds(cost.collectives, chip, shape))


def scaling(cost: Cost, kind: str) -> dict[int, Estimate]:
  """By the number of chips, the estimate of a step in which each chip has the same share of a batch.

  Args:
    cost: of a step in which all chips of a slice take part in every collective.
    kind: of `CHIPS`.
  """
  over = lambda chips: dataclasses.replace(cost, collectives=tuple(one.over(chips) for one in cost.collectives))
  return {chips: estimate(over(chips), CHIPS[kind], shape) for chips, shape in SLICES[kind].items()}


def slice_shape(topology: str) -> tuple[int, ...]:
  """"v5e:16x16" -> (16, 16)."""
  return tuple(map(int, topology.partition(":")[2].split("x")))


def format_bytes(size: float) -> str:
  return f"{size / GB:.2f} GB" if size >= GB else f"{size / MB:.0f} MB"

