"""Repeats a step that was not finite, with checks."""

import dataclasses

import jax
import numpy as np

from rsatalker_jax import sharding
from rsatalker_jax.training import loop, nonfinite
from rsatalker_jax.training.broken_steps import BrokenStep

_SHOWN = 20  # Lines of each list.


def describe(stage: loop.Stage, broken: BrokenStep, mesh: jax.sharding.Mesh) -> str:
  """Repeats a step on this process's devices, and says what is not finite: of what it started from, of its terms and of its
  gradients, and in which operations that arose.

  Raises:
    InputError: its files are damaged or not of this stage.
  """
  mesh = stage.mesh or mesh
  if broken.room and stage.room and stage.room.grow:
    stage = dataclasses.replace(stage, loss=stage.room.grow(broken.room))
  with jax.set_mesh(mesh):
    _, abstract = loop.init_state(stage, mesh, jax.random.key(0))
    state, batch = broken.load(abstract)
    batch = sharding.put_batch(mesh, batch)
    lines = [f"stage {stage.name}, step {broken.step}, taken by {broken.processes} process{'es' * (broken.processes > 1)}", ""]
    lines += _list("Before it, in its state", _find_broken({"params": state.params, "buffers": state.buffers, "opt_state": state.opt_state}))
    lines += _list("In its batch", _find_broken(batch))

    # In one part: within a loop over parts no operation would be found.
    whole = dataclasses.replace(stage, accumulate=1)

    def differentiate(params, buffers, batch):
      given = dataclasses.replace(state, params=params, buffers=buffers)
      (loss, terms), gradients = loop.differentiate(whole, given, batch, jax.random.fold_in(broken.key, state.step))
      return {"loss": loss, **terms}, gradients[0]

    origins = nonfinite.find_origins(differentiate, state.params, state.buffers, batch)
    terms, gradients = jax.jit(differentiate)(state.params, state.buffers, batch)
    lines += _list("Of its terms", [f"{name}={float(x)}" for name, x in terms.items() if not np.isfinite(x)])
    lines += _list("Of its gradients", _find_broken(gradients))
    lines += [f"What is not finite arose in{'' if origins else ': nothing'}"]
    lines += [f"  {origin.operation}: {_name(origin)}" for origin in origins[:_SHOWN]]
    lines += ["", _compare(stage, broken, state, batch, abstract)]
  return "\n".join(lines)


def _name(origin: nonfinite.Origin) -> str:
  if origin.operation != "argument":
    return origin.place
  kinds = {"[0]": "params", "[1]": "buffers", "[2]": "batch"}
  return kinds[origin.place[:3]] + origin.place[3:]


def _list(title: str, entries: list[str]) -> list[str]:
  more = [f"  and {len(entries) - _SHOWN} more"] * (len(entries) > _SHOWN)
  return [f"{title}, not finite:{'' if entries else ' nothing'}", *(f"  {entry}" for entry in entries[:_SHOWN]), *more, ""]


def _find_broken(tree) -> list[str]:
  """The arrays of a tree that hold numbers which are not finite, and how many."""
  found = []
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    x = np.asarray(x)
    if np.issubdtype(x.dtype, np.inexact) and (count := int(np.sum(~np.isfinite(x)))):
      found.append(f"{jax.tree_util.keystr(path)}: {count} of {x.size}, {int(np.sum(np.isnan(x)))} of them NaN")
  return found


def _compare(stage: loop.Stage, broken: BrokenStep, state, batch, abstract) -> str:
  """Whether the step as training takes it gives what it gave then."""
  step = loop.compile_step(stage, broken.key, jax.tree.map(lambda x: x.sharding, abstract))
  _, terms = step(state, batch, broken.step - 1)
  terms = {name: float(x) for name, x in terms.items() if name != loop.BROKEN}
  others = [name for name, x in broken.terms.items() if not np.array_equal(terms[name], np.float32(x), equal_nan=True)]
  if not others:
    return "The step as training takes it gives the same terms, to the bit."
  return f"The step as training takes it gives other terms than then: {', '.join(f'{x}={terms[x]}, then {broken.terms[x]}' for x in others)}"
