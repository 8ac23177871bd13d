"""Where numbers stop being finite: the operations of a program that get finite numbers and give others, and whose reach its results.

An infinite number that is masked away is no fault, and programs are full of them. So each operation's result is looked at, and then
the way is gone backwards from the results that are not finite to the operations in which they arose.
"""

import dataclasses
import traceback
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.sharding import PartitionSpec as P

# Operations that are a program of their own, and whose parts are looked at one by one; loops and branches are not.
_INLINED = {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2", "custom_jvp_call", "custom_vjp_call"}
_OWN = ("rsatalker_jax", "splat_kernels")
# Files of jax/_src that every operation passes through when it is noted down.
_MACHINERY = ("interpreters/", "pjit.py", "api", "core.py", "linear_util.py", "profiler.py", "source_info_util.py", "traceback_util.py")
# Through which every operation of a loss is asked for.
_CALLERS = tuple(f"/training/{name}.py" for name in ("nonfinite", "replay", "loop"))


@dataclasses.dataclass(frozen=True)
class Origin:
  """Where numbers that are not finite arose.

  Attributes:
    operation: the primitive, or "argument" where they were there before.
    place: lines of this project's code, the innermost first; of an argument its path.
  """

  operation: str
  place: str


@dataclasses.dataclass(frozen=True)
class _Operation:
  name: str
  place: str
  inputs: tuple[int, ...]
  outputs: tuple[int, ...]


class _Walk:
  """Evaluates a jaxpr operation by operation, and keeps for every value whether all of it is finite.

  Attributes:
    operations: in their order.
    finite: by number of the value.
  """

  def __init__(self):
    self.operations: list[_Operation] = []
    self.finite: dict[int, Any] = {}
    self._count = 0

  def number(self, value: Any) -> tuple[Any, int]:
    """The value with a number of its own."""
    self._count += 1
    inexact = jnp.issubdtype(jnp.result_type(value), jnp.inexact)
    self.finite[self._count] = jnp.all(jnp.isfinite(value)) if inexact else jnp.array(True)
    return value, self._count

  def run(self, jaxpr: Any, consts: list, arguments: list[tuple[Any, int]], caller: str = "") -> list[tuple[Any, int]]:
    """Its results; `caller` is the place of the call, where it is a program that JAX may have traced for another call before."""
    values = dict(zip(jaxpr.constvars, map(self.number, consts))) | dict(zip(jaxpr.invars, arguments))
    read = lambda x: (x.val, 0) if isinstance(x, core.Literal) else values[x]
    for equation in jaxpr.eqns:
      inputs = list(map(read, equation.invars))
      values |= zip(equation.outvars, self._evaluate(equation, inputs, caller, jaxpr.debug_info))
    return list(map(read, jaxpr.outvars))

  def _evaluate(self, equation: Any, inputs: list[tuple[Any, int]], caller: str, debug_info: Any) -> list[tuple[Any, int]]:
    name, params, place = equation.primitive.name, equation.params, _find_place(equation, caller)
    inner = next((params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params), None)
    if name in _INLINED and inner is not None:
      closed = isinstance(inner, core.ClosedJaxpr)
      return self.run(inner.jaxpr if closed else inner, inner.consts if closed else [], inputs, place if "jit" in name else caller)
    if name == "shard_map":
      return self._evaluate_shards(params, inputs, caller)
    given = {x: value for x, (value, _) in zip(equation.invars, inputs) if not isinstance(x, core.Literal)}
    alone = core.Jaxpr([], list(given), equation.outvars, [equation], debug_info=debug_info)
    outputs = [self.number(value) for value in core.jaxpr_as_fun(core.ClosedJaxpr(alone, []))(*given.values())]
    numbers = (tuple(number for _, number in pairs) for pairs in (inputs, outputs))
    self.operations.append(_Operation(name, place, *numbers))
    return outputs

  def _evaluate_shards(self, params: dict[str, Any], inputs: list[tuple[Any, int]], caller: str) -> list[tuple[Any, int]]:
    """As the operation does it, each device on its part; what is finite on all is finite."""
    mesh, numbers = params["mesh"], {}

    def run(*values):
      inner = _Walk()
      inner._count = self._count
      results = inner.run(params["jaxpr"], [], [(value, number) for value, (_, number) in zip(values, inputs)], caller)
      self.operations += inner.operations
      self._count = inner._count
      numbers["finite"], numbers["results"] = list(inner.finite), [number for _, number in results]
      flags = jnp.stack(list(inner.finite.values())) if inner.finite else jnp.ones(0, bool)
      # False, which varies over the devices, as `check_vma` asks of what is put together from their parts.
      flags |= jax.lax.axis_index(mesh.axis_names) < 0
      return [value for value, _ in results], flags[None]

    out_specs = (list(params["out_specs"]), P(mesh.axis_names))
    in_specs, check_vma = tuple(params["in_specs"]), params["check_vma"]
    spread = jax.shard_map(run, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=check_vma)
    results, flags = spread(*(value for value, _ in inputs))
    self.finite |= dict(zip(numbers["finite"], jnp.all(flags, axis=0)))
    return list(zip(results, numbers["results"]))


def find_origins(function: Callable[..., Any], *arguments: Any) -> list[Origin]:
  """The operations, or arguments, in which what is not finite in the results of `function(*arguments)` arose, the first first.

  Those in loops and branches are named as the loop or branch. Empty where all results are finite.
  """
  closed, _ = jax.make_jaxpr(function, return_shape=True)(*arguments)
  leaves = jax.tree_util.tree_leaves_with_path(arguments)
  walk, numbers = _Walk(), {}

  def run(values):
    given = [walk.number(value) for value in values]
    results = walk.run(closed.jaxpr, closed.consts, given)
    numbers["given"], numbers["results"] = ([number for _, number in pairs] for pairs in (given, results))
    return jnp.stack([walk.finite[number] for number in sorted(walk.finite)])

  flags = np.asarray(jax.jit(run)([value for _, value in leaves]))
  finite = dict(zip(sorted(walk.finite), flags)) | {0: True}
  made_by = {number: i for i, operation in enumerate(walk.operations) for number in operation.outputs}
  pending = [number for number in numbers["results"] if not finite[number]]
  seen, arose = set(), set()
  while pending:
    number = pending.pop()
    if number in seen:
      continue
    seen.add(number)
    if number not in made_by:
      arose.add((-1, number))
      continue
    broken = [x for x in walk.operations[made_by[number]].inputs if not finite[x]]
    pending += broken
    if not broken:
      arose.add((made_by[number], 0))
  paths = {number: jax.tree_util.keystr(path) for number, (path, _) in zip(numbers["given"], leaves)}
  origins = []
  for i, number in sorted(arose):
    if i < 0:
      origins.append(Origin("argument", paths.get(number, "a constant")))
    else:
      origins.append(Origin(walk.operations[i].name, walk.operations[i].place))
  return list(dict.fromkeys(origins))


def _find_place(equation: Any, caller: str) -> str:
  """Lines of this project in which an operation was asked for, the innermost first, and the caller last."""
  try:
    frames = list(traceback.extract_tb(equation.source_info.traceback.as_python_traceback()))
  except AttributeError:  # It was made by no line.
    return caller or "an operation of JAX's own"
  if caller:  # Lines outside of a jitted function may be those of another call of it.
    while frames and frames[-1].filename.rpartition("/jax/_src/")[2].startswith(_MACHINERY):
      frames.pop()
    frames = frames[max([0, *(i for i, frame in enumerate(frames) if frame.filename.endswith("/pjit.py"))]) :]
  frames = [frame for frame in frames if not frame.filename.endswith(_CALLERS)]
  own = [frame for frame in frames if any(f"/{name}/" in frame.filename for name in _OWN)]
  shown = own or [frame for frame in frames if "/site-packages/" not in frame.filename]
  places = [f"{_shorten(frame.filename)}:{frame.lineno} ({frame.name})" for frame in shown[::-1][:3]]
  return ", called by ".join([*places, *([caller] * bool(caller))])


def _shorten(filename: str) -> str:
  starts = [filename.rfind(f"/{name}/") for name in _OWN]
  return filename[max(starts) + 1 :]
