"""Steps of a stage on a mesh, for tests that compare meshes. A program, since JAX counts its devices only once:

    python tests/mesh_steps.py WORLD OUT STAGE:DATAxFSDP … [--coordinator=HOST:PORT --process=I --processes=P]

writes OUT/<stage>-<data>x<fsdp>-<processes>.npz with the losses, gradients and states of
the steps on them. With several processes each has one device and its share of the same batches.
"""

import argparse
import dataclasses
import gc
import pathlib
import sys
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path[:0] = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parents[1])]

import tiny_world  # noqa: E402
from rsatalker_jax import sharding  # noqa: E402
from rsatalker_jax.commands.train import make_stage  # noqa: E402
from rsatalker_jax.talker import Talker, make_encoder, make_talker  # noqa: E402
from rsatalker_jax.training import loop  # noqa: E402
from rsatalker_jax.training.stage_inputs import StageInputs  # noqa: E402
from training import stand_ins  # noqa: E402

BATCH = 8
PEOPLE = ("capture", "other")
_ADAPTIVE = {f"density.adaptive.{key}": value for key, value in dict(start=0, stop=3, every=1, reset_every=2).items()}
_MCMC = {f"density.mcmc.{key}": value for key, value in dict(start=0, stop=3, every=1).items()}
# By name: the stage, what its config has other than the tiny world's, and how many steps are taken.
CASES = {
    "motion": ("motion", {"generator.dropout": 0.1}, 2),
    "adaptive": ("avatar", _ADAPTIVE | {"density.way": "adaptive", "density.adaptive.gradient_threshold": 3.5e-3}, 3),
    "mcmc": ("avatar", _MCMC | {"density.way": "mcmc"}, 3),
    "bank": ("avatar", _MCMC | {"data.captures": PEOPLE, "density.way": "mcmc", "avatar.flame_learning_rates.translation": 1e-3}, 3),
    "joint": ("joint", {"joint.avatar_share": 0.5, "joint.tracked_weight": 0.0, "generator.encoder_layers": 0}, 2),
}


def write_world(root: pathlib.Path) -> None:
  tiny_world.write_world(root)
  tiny_world.write_capture(root / "other", shape=(2.0, -3.0), color=(60, 90, 200))


def make_config(root: pathlib.Path, name: str):
  config = tiny_world.tiny_config(root)
  config.render.implementation = "reference"  # Compiles faster; so do small networks.
  config.generator.update(dict(decoder_layers=0, speech_layers=1, motion_kernel=1, motion_stride=1))
  config.motion.update(dict(batch=BATCH, window=10))
  config.joint.update(dict(batch=BATCH, motion_batch=BATCH, window=10, frames=1))
  config.avatar.update(dict(batch=BATCH, steps=8))
  config.gaussians.update(dict(capacity=300, color_frames=1))
  overrides = dict(CASES[name][1])
  if "data.captures" in overrides:
    overrides["data.captures"] = tuple(str(root / person) for person in overrides["data.captures"])
  config.update_from_flattened_dict(overrides)
  return config


def keep_gradients(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
  """The optimizer, which also keeps the step's gradients in its state."""
  keep = optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), lambda g, state, params: (g, g))
  return optax.chain(keep, optimizer)


def descend_smoothly() -> None:
  """Otherwise Adam takes whole steps where a gradient is nothing but rounding. For networks descent alone, which compiles faster."""
  adam = optax.adam
  optax.adam = lambda rate, eps=None: adam(rate, eps=1e-3)
  optax.adamw = lambda rate, **_: optax.sgd(0.1)


class PlainRenderer(Talker):
  """Frames in one colour, which compile fast."""

  def render(self, *scene, **options):
    return stand_ins.plain_render(*scene, **options)


def take_steps(root: pathlib.Path, name: str, data: int, fsdp: int) -> dict[str, np.ndarray]:
  """Losses and gradients of each step, and the state after the last, by their paths."""
  config, (stage_name, _, steps) = make_config(root, name), CASES[name]
  mesh = sharding.make_mesh(data, fsdp, jax.devices()[: data * fsdp])
  talker = make_talker(config)
  drawn = name == "adaptive"  # Which takes what it does from gradients of places on screen.
  if not drawn:
    talker = PlainRenderer(**vars(talker))
  inputs = StageInputs(config, talker, make_encoder(config.speech, None), mesh, say=lambda _: None)
  index, count = jax.process_index(), jax.process_count()
  # Every process draws the whole of the same batches, and gives its devices their share.
  with unittest.mock.patch.multiple(jax, process_index=lambda: 0, process_count=lambda: 1):
    stage = make_stage(inputs, stage_name)
  stage = dataclasses.replace(stage, optimizer=keep_gradients(stage.optimizer), room=stage.room if drawn else None)
  share = slice(index * BATCH // count, (index + 1) * BATCH // count)
  found = {}
  with jax.set_mesh(stage.mesh):
    whole = jax.jit(lambda tree: tree, out_shardings=jax.NamedSharding(mesh, jax.P()))
    state, abstract = loop.init_state(stage, stage.mesh, jax.random.key(0))
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    step = loop.compile_step(stage, jax.random.key(1), shardings)
    for number, batch in zip(range(steps), stage.batches):
      batch = sharding.put_batch(stage.mesh, jax.tree.map(lambda x: x[share], batch))
      state, terms = step(state, batch, number)
      found |= named({f"step {number}": {"terms": whole(terms), "gradients": whole(state.opt_state[0])}})
      for hook in stage.hooks:
        if hook.due(number + 1):
          state = jax.device_put(hook.call(state, number + 1), shardings)
    split = sum(not x.sharding.is_fully_replicated for x in jax.tree.leaves(state))
    return found | named({"state": whole(state), "split": split})


def named(tree) -> dict[str, np.ndarray]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x) for path, x in leaves}


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("world", type=pathlib.Path)
  parser.add_argument("out", type=pathlib.Path)
  parser.add_argument("cases", nargs="+")
  parser.add_argument("--coordinator")
  parser.add_argument("--process", type=int)
  parser.add_argument("--processes", type=int, default=1)
  args = parser.parse_args()
  jax.config.update("jax_num_cpu_devices", 8 if args.processes == 1 else 1)
  if args.coordinator:
    jax.distributed.initialize(args.coordinator, args.processes, args.process)
  gc.disable()  # Tracing makes millions of objects that stay.
  descend_smoothly()
  # The tiny world's arrays are small, and its images large for frames in one colour.
  sharding.MIN_SHARDED_SIZE, stand_ins.SIZE = 32, tiny_world.SIZE
  for case in args.cases:
    name, sizes = case.split(":")
    found = take_steps(args.world, name, *map(int, sizes.split("x")))
    if jax.process_index() == 0:
      np.savez(args.out / f"{name}-{sizes}-{args.processes}.npz", **found)


if __name__ == "__main__":
  main()
