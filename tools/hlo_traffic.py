"""What a compiled XLA program moves: bytes through a chip's memory, and collectives between chips, read from its text.

Loops count as often as they run: XLA's own cost analysis counts a loop's body once, and gives GPUs no numbers at all.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

# Bits of an element, by XLA's name.
_BITS = {"pred": 8, "s4": 4, "u4": 4, "s2": 2, "u2": 2, "bf16": 16, "c64": 64, "c128": 128, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute", "collective-broadcast",
)  # fmt: skip
# What touches no memory of its own.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "add-dependency", "opt-barrier", "domain", "iota", "async-update",
}  # fmt: skip
_FREE_CALLS = ("ConcatBitcast", "Sharding", "AllocateBuffer")
_SLICES = ("slice", "dynamic-slice", "gather")


@dataclasses.dataclass(frozen=True)
class Collective:
  """Collectives of one kind and size.

  Attributes:
    kind: XLA's name, without -start.
    bytes: that one chip gives to one of them.
    group: chips that take part in one.
    count: how many of these a run of the program has.
  """

  kind: str
  bytes: int
  group: int
  count: int = 1

  @property
  def sent(self) -> float:
    """Bytes that a chip sends in one of them, around a ring (Thakur et al. 2005; on a torus as many, over all its rings at once)."""
    n = self.group
    return self.bytes * {
        "all-reduce": 2 * (n - 1) / n,
        "all-gather": n - 1,
        "reduce-scatter": (n - 1) / n,
        "all-to-all": (n - 1) / n,
        "ragged-all-to-all": (n - 1) / n,
        "collective-permute": 1,
        "collective-broadcast": 1,
    }[self.kind]

  def over(self, chips: int) -> "Collective":
    """The same collective where so many chips take part."""
    return dataclasses.replace(self, group=chips)


@dataclasses.dataclass(frozen=True)
class Traffic:
  """What one chip moves in one run of a program.

  Attributes:
    memory: bytes read and written: each instruction's operands and results once; a slice counts what it takes.
    collectives: with a group of more than one chip.
    endless: loops whose rounds XLA does not know; they count as one round.
  """

  memory: float
  collectives: tuple[Collective, ...]
  endless: int


@dataclasses.dataclass(frozen=True)
class _Instruction:
  name: str
  type: str
  opcode: str
  arguments: str
  operands: tuple[str, ...]
  rest: str
  is_root: bool


def type_bytes(text: str, *, everywhere: bool = True) -> int:
  """Bytes of an array's or a tuple's type as XLA writes it.

  Args:
    text: "f32[8,128]{1,0:T(8,128)}" or "(f32[2], s32[])".
    everywhere: False leaves out what lies in another memory than the chip's main one (S(1) is a TPU's vector memory).
  """
  total = 0
  for dtype, dims, layout in _ARRAY.findall(text):
    bits = _BITS.get(dtype)
    if bits is None:
      size = re.match(r"[a-z]+(\d+)", dtype)
      if size is None:
        continue
      bits = int(size[1])
    space = re.search(r"S\((\d+)\)", layout or "")
    if everywhere or not (space and int(space[1])):
      total += -(-bits * math.prod(map(int, filter(None, dims.split(",")))) // 8)
  return total


def read_traffic(text: str, chips: int) -> Traffic:
  """Reads a compiled program.

  Args:
    text: of `jax.stages.Compiled.as_text()`: one chip's program.
    chips: that run it.
  """
  computations, entry = _parse(text)
  memory, found, endless = 0.0, {}, 0
  for instructions, times, is_code in _executed(computations, entry):
    types = {instruction.name: instruction.type for instruction in instructions}
    for instruction in instructions:
      if instruction.opcode == "while" and _trip_count(instruction) is None:
        endless += 1
      if collective := _read_collective(instruction, types, chips):
        found[collective] = found.get(collective, 0) + times
      if is_code:
        memory += times * _instruction_bytes(instruction, types, computations)
  collectives = tuple(dataclasses.replace(one, count=count) for one, count in found.items() if one.group > 1)
  return Traffic(memory, collectives, endless)


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
  computations: dict[str, list[_Instruction]] = {}
  entry = current = ""
  for line in text.splitlines():
    if opened := re.match(r"^(ENTRY )?%?([\w.\-<>]+) \(.*\{\s*$", line):
      current = opened[2]
      computations[current] = []
      entry = current if opened[1] else entry
    elif match := re.match(r"^\s+(ROOT )?%?([\w.\-<>]+) = (.*)$", line):
      computations[current].append(_parse_instruction(match[2], match[3], bool(match[1])))
  return computations, entry


def _parse_instruction(name: str, text: str, is_root: bool) -> _Instruction:
  end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
  kind, text = text[:end], text[end:].lstrip()
  start = text.index("(")
  stop = _closing(text, start)
  arguments = text[start + 1 : stop]
  operands = tuple(re.findall(r"%([\w.\-<>]+)", arguments))
  return _Instruction(name, kind, text[:start], arguments, operands, text[stop + 1 :], is_root)


def _closing(text: str, start: int) -> int:
  """Where the parenthesis that opens at `start` closes."""
  depth = 0
  for at in range(start, len(text)):
    depth += {"(": 1, ")": -1}.get(text[at], 0)
    if not depth:
      return at
  return len(text) - 1


def _trip_count(instruction: _Instruction) -> int | None:
  found = re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.rest)
  return int(found[1]) if found else None


def _called(instruction: _Instruction, *keys: str) -> list[str]:
  return [name for key in keys for name in re.findall(rf"\b{key}=%?([\w.\-<>]+)", instruction.rest)]


def _executed(computations, entry: str) -> Iterator[tuple[list[_Instruction], int, bool]]:
  """Computations with how often they run, and whether their instructions touch memory (those within a fusion do not)."""
  waiting = [(entry, 1, True)]
  while waiting:
    name, times, is_code = waiting.pop()
    if name not in computations:
      continue
    yield computations[name], times, is_code
    for instruction in computations[name]:
      if instruction.opcode == "while":
        rounds = times * (_trip_count(instruction) or 1)
        waiting += [(called, rounds, is_code) for called in _called(instruction, "body", "condition")]
      elif instruction.opcode == "conditional":
        branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
        names = re.findall(r"%?([\w.\-<>]+)", branches[1]) if branches else []
        names += _called(instruction, "true_computation", "false_computation")
        waiting += [(called, times, is_code) for called in names]
      elif instruction.opcode == "call":
        waiting += [(called, times, is_code) for called in _called(instruction, "to_apply")]
      elif instruction.opcode in ("fusion", "async-start"):
        waiting += [(called, times, False) for called in _called(instruction, "calls")]


def _read_collective(instruction: _Instruction, types: dict[str, str], chips: int) -> Collective | None:
  kind = instruction.opcode.removesuffix("-start")
  if kind not in _COLLECTIVES:
    return None
  size = sum(type_bytes(types[name]) for name in instruction.operands if name in types)
  return Collective(kind, size, _group_size(instruction.rest, chips))


def _group_size(rest: str, chips: int) -> int:
  if "source_target_pairs=" in rest:
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", rest)
    return 2 if pairs else 1
  if found := re.search(r"replica_groups=\[\d+,(\d+)\]<=", rest):
    return int(found[1])
  if found := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", rest):
    sizes = {name: int(size) for name, size in re.findall(r"'(.*?)'=(\d+)", found[1])}
    return math.prod(sizes[name] for name in re.findall(r"'(.*?)'", found[2]))
  if found := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
    return len(found[1].split(","))
  return chips  # `replica_groups={}`: all of them.


def _instruction_bytes(instruction: _Instruction, types: dict[str, str], computations) -> float:
  opcode = instruction.opcode
  if opcode in _FREE or opcode.endswith("-done") or any(f'"{name}"' in instruction.rest for name in _FREE_CALLS):
    return 0
  here = lambda kind: type_bytes(kind, everywhere=False)
  # cuBLAS gets room to work in beside its result; how much of it is used is not said.
  kind = instruction.type if '"__cublas' not in instruction.rest else re.search(_ARRAY, instruction.type)[0]
  result = here(kind)
  operands = [here(types.get(name, "")) for name in instruction.operands]
  if opcode.endswith("-start"):
    # The result is a tuple of what is given and what comes of it; what comes of it is last but for bookkeeping.
    arrays = [(type_bytes(found[0]), here(found[0])) for found in re.finditer(_ARRAY, instruction.type)]
    if opcode.startswith("copy"):
      return sum(operands) + (arrays[0][1] if arrays else 0)
    if opcode.startswith(("slice", "dynamic-slice")):
      return arrays[1][0] + arrays[1][1] if len(arrays) > 1 else 0
    return 2 * sum(operands)
  if opcode in _SLICES:
    return 2 * result
  if opcode in ("dynamic-update-slice", "scatter"):
    return 2 * sum(operands[1:])
  if opcode == "fusion":
    return _fusion_bytes(instruction, result, operands, computations)
  return result + sum(operands)


def _fusion_bytes(instruction: _Instruction, result: float, operands: list[int], computations) -> float:
  """As any instruction's, but of operands that are only sliced in it the slices, and of results updated in place the update."""
  (name,) = _called(instruction, "calls")[:1] or ("",)
  body = computations.get(name, [])
  types = {one.name: one.type for one in body}
  total = result
  for parameter, number in {one.name: int(one.arguments) for one in body if one.opcode == "parameter"}.items():
    if number >= len(operands) or not operands[number]:
      continue
    users = [one for one in body if parameter in one.operands]
    if users and all(one.opcode in _SLICES and one.operands[0] == parameter for one in users):
      total += min(operands[number], sum(type_bytes(one.type) for one in users))
    elif users and all(one.opcode == "dynamic-update-slice" and one.operands[0] == parameter for one in users):
      updates = sum(type_bytes(types.get(one.operands[1], "")) for one in users)
      total += 2 * updates - min(result, sum(type_bytes(one.type) for one in users))
    else:
      total += operands[number]
  return total
