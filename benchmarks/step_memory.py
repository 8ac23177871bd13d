"""What a train step of the paper's size keeps for its gradients, by settings of the config; needs no data and compiles nothing.

    python benchmarks/step_memory.py motion "generator.remat=full motion.accumulate=4" "generator.remat=dots"
    python benchmarks/step_memory.py joint "render.frames_at_once=1" [--compile]

A row for configs/rsatalker.py:ours as it is and one for each set of overrides, on one device: megabytes of arrays that the
forward pass leaves for the backward one, as JAX traces them (parameters among them). With --compile, too, what XLA says of
the temporaries of the whole step, compiled for the CPU (which drops what holds `generator.remat` apart: it is the same with and without).
"""

import argparse
import ast
import os
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from configs.rsatalker import get_config
from rsatalker_jax import sharding
from rsatalker_jax.commands.config_values import check_values
from rsatalker_jax.commands.train import make_stage
from rsatalker_jax.training import loop
from tools.stages_without_data import DataSizes, make_blank_inputs


def parse_value(text: str):
  try:
    return ast.literal_eval(text)
  except ValueError:  # A word.
    return text


def make_step(name: str, overrides: str):
  """The stage with its mesh of one device, its abstract state and its abstract batch."""
  config = get_config("ours")
  config.update_from_flattened_dict({key: parse_value(value) for key, value in (x.split("=", 1) for x in overrides.split())})
  check_values(config)
  mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
  stage = make_stage(make_blank_inputs(config, mesh, DataSizes()), name)
  place = sharding.batch_sharding(mesh)
  batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), next(iter(stage.batches)))
  described = []
  with jax.set_mesh(mesh):
    jax.eval_shape(lambda key: described.append(loop.init_state(stage, mesh, key)[1]), jax.random.key(0))
  return stage, described[0], batch


def count_kept(stage: loop.Stage, state, batch) -> int:
  """Bytes that the forward pass of a batch, or of one of its parts, leaves, parameters that the backward one needs among them."""
  key = jax.random.key(0)

  def forward(params, probes, buffers, batch):
    return jax.vjp(lambda p, q: stage.loss(p | q, buffers, batch, key, jnp.int32(0)), params, probes, has_aux=True)[1]

  part = jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(x) // stage.accumulate, *x.shape[1:]), x.dtype), batch)
  with jax.set_mesh(stage.mesh):
    kept = jax.eval_shape(forward, state.params, stage.probes, state.buffers, part)
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept))


def count_temporaries(stage: loop.Stage, state, batch) -> int:
  shardings = jax.tree.map(lambda x: x.sharding, state)
  with jax.set_mesh(stage.mesh):
    compiled = loop.compile_step(stage, jax.random.key(0), shardings).lower(state, batch, 0).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("stage", choices=("motion", "avatar", "joint"))
  parser.add_argument("overrides", nargs="*", help="keys of the config and values, with spaces between them")
  parser.add_argument("--compile", action="store_true", help="also for the CPU")
  args = parser.parse_args()
  print(f"| {args.stage} | kept for gradients, MB |{' temporaries, MB |' * args.compile}\n|---|---|{'---|' * args.compile}")
  for overrides in ("", *args.overrides):
    step = make_step(args.stage, overrides)
    sizes = [count_kept(*step), *([count_temporaries(*step)] if args.compile else [])]
    print(f"| {overrides or 'as it is'} | {' | '.join(f'{size / 2**20:.0f}' for size in sizes)} |", flush=True)


if __name__ == "__main__":
  main()
