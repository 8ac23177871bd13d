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
      ("| stage | target | GFLOPs | memory traffic, least to most | FLOPs/byte (ridge) | collectives | sent | compute, ms | memory, ms |"
       " communication, ms | step, ms | bound by |"),
      "|---" * 12 + "|",
  ]
  for step in steps:
    chip, cost = step.chip, step.cost
    estimated = roofline.estimate(cost, chip, roofline.slice_shape(step.target))
    counts = {}
    for one in cost.collectives:
      counts[one.kind] = counts.get(one.kind, 0) + one.count
    collectives = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "none"
    ms = lambda *seconds: " to ".join(f"{1e3 * x:.2f}" for x in seconds)
    cells = [
        step.stage,
        step.target,
        f"{cost.flops / 1e9:.0f}",
        f"{roofline.format_bytes(cost.least)} to {roofline.format_bytes(cost.memory)}",
        f"{cost.flops / cost.memory:.0f} to {cost.flops / cost.least:.0f} ({chip.flops / chip.bandwidth:.0f})",
        collectives,
        roofline.format_bytes(cost.sent),
        ms(estimated.compute),
        ms(estimated.least, estimated.memory),
        ms(estimated.communication),
        ms(estimated.shortest, estimated.longest),
        estimated.bound,
    ]
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def scaling_table(steps: list[Step]) -> str:
  """Of the shortest steps, each chip with the same share of a batch: efficiency against one chip by the number of chips, that of
  the target's number of chips against 8, and the batch that would reach 80 % of one chip's speed there."""
  columns = sorted({chips for sizes in roofline.SLICES.values() for chips in sizes} - {1})
  head = ["stage", "chip", *(f"{chips} chips" for chips in columns), "against 8", "batch for 80 %"]
  lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
  for step in steps:
    by_chips = roofline.scaling(step.cost, step.target.partition(":")[0])
    percent = lambda x: f"{100 * x:.0f} %"
    cells = [percent(by_chips[chips].efficiency) if chips in by_chips else "" for chips in columns]
    own = roofline.estimate(step.cost, step.chip, roofline.slice_shape(step.target))
    factor = own.batch_for(0.8)
    cells += [percent(by_chips[8].shortest / own.shortest), "as it is" if factor <= 1 else f"{factor:.1f} times"]
    lines.append(f"| {step.stage} | {step.chip.name} | {' | '.join(cells)} |")
  return "\n".join(lines)


def notes(steps: list[Step]) -> str:
  """Lines about what the tables do not count."""
  return "\n".join(
      f"{step.target}, {step.stage}: {step.endless} loops whose rounds XLA does not know count as one round in the traffic."
      for step in steps if step.endless
  )


def to_json(step: Step) -> str:
  return json.dumps(dataclasses.asdict(step))


def from_json(text: str) -> Step:
  values = json.loads(text)
  cost = values["cost"]
  cost["collectives"] = tuple(Collective(**one) for one in cost["collectives"])
  return Step(**values | {"cost": roofline.Cost(**cost)})
