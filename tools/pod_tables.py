"""What is said of compiled train steps: whether they fit, and tables in Markdown."""

import dataclasses
import json

from tools import roofline
from tools.hlo_traffic import Collective


@dataclasses.dataclass(frozen=True)
class Step:
  """A compiled train step of a stage.

  Attributes:
    stage, target: which.
    devices: that run it.
    batch: what of the config says how large the batch is.
    arguments, temporaries, code: bytes on each chip.
    cost: of one step on one chip.
    endless: loops whose rounds are not known; they count as one.
    seconds: that compiling took, of all threads.
  """

  stage: str
  target: str
  devices: int
  batch: str
  arguments: int
  temporaries: int
  code: int
  cost: roofline.Cost
  endless: int
  seconds: float

  @property
  def chip(self) -> roofline.Chip:
    return roofline.CHIPS[self.target.partition(":")[0]]

  @property
  def memory(self) -> int:
    """Bytes on each chip, all in all."""
    return self.arguments + self.temporaries + self.code


def check_fits(step: Step) -> str | None:
  """A line about a step that does not fit; None if it does."""
  limit = step.chip.memory
  if step.memory <= limit:
    return None
  found = f"{roofline.format_bytes(step.memory)} a chip"
  return f"{step.target}, {step.stage}: found {found}, expected at most {roofline.format_bytes(limit)}"


def memory_table(steps: list[Step]) -> str:
  lines = ["| stage | target | batch | arguments | temporaries | code | in all, of | fits |", "|---" * 8 + "|"]
  for step in steps:
    limit = step.chip.memory
    sizes = [roofline.format_bytes(size) for size in (step.arguments, step.temporaries, step.code, step.memory, limit)]
    fits = "no" if check_fits(step) else "yes"
    lines.append(f"| {step.stage} | {step.target} | {step.batch} | {' | '.join(sizes[:4])} of {sizes[4]} | {fits} |")
  return "\n".join(lines)


def work_table(steps: list[Step]) -> str:
  lines = [
      "| stage | target | GFLOPs | memory traffic | FLOPs/byte (ridge) | collectives | sent | compute, ms | memory, ms |"
      " communication, ms | step, ms | bound by |",
      "|---" * 12 + "|",
  ]
  for step in steps:
    chip, cost = step.chip, step.cost
    estimated = roofline.estimate(cost, chip, roofline.slice_shape(step.target))
    counts = {}
    for one in cost.collectives:
      counts[one.kind] = counts.get(one.kind, 0) + one.count
    collectives = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "none"
    times = [estimated.compute, estimated.memory, estimated.communication, estimated.step]
    numbers = " | ".join(f"{1e3 * seconds:.2f}" for seconds in times)
    lines.append(
        f"| {step.stage} | {step.target} | {cost.flops / 1e9:.0f} | {roofline.format_bytes(cost.memory)} | "
        f"{cost.intensity:.0f} ({chip.flops / chip.bandwidth:.0f}) | {collectives} | {roofline.format_bytes(cost.sent)} | {numbers} | "
        f"{estimated.bound} |"
    )
  return "\n".join(lines)


def scaling_table(steps: list[Step]) -> str:
  """Efficiency by chips, with the same share of a batch for each chip."""
  columns = sorted({chips for sizes in roofline.SLICES.values() for chips in sizes})
  lines = ["| stage | chip | " + " | ".join(f"{chips} chip" + "s" * (chips > 1) for chips in columns) + " |", "|---" * (2 + len(columns)) + "|"]
  for step in steps:
    kind = step.target.partition(":")[0]
    cells = roofline.scaling(step.cost, kind)
    texts = [f"{100 * cells[chips][1]:.0f} %" if chips in cells else "" for chips in columns]
    lines.append(f"| {step.stage} | {roofline.CHIPS[kind].name} | " + " | ".join(texts) + " |")
  return "\n".join(lines)


def to_json(step: Step) -> str:
  return json.dumps(dataclasses.asdict(step))


def from_json(text: str) -> Step:
  values = json.loads(text)
  cost = values["cost"]
  cost["collectives"] = tuple(Collective(**one) for one in cost["collectives"])
  return Step(**values | {"cost": roofline.Cost(**cost)})
