"""Stage 2 for several people at once: a bank of avatars, trained on batches with frames of different people.

    params  = {"bank": Gaussians, each array with people (P) in front}
    buffers = {"bank": {binding (P, N), shape (P, S), static_offset (P, V, 3)?}}

Everybody is trained as if alone: frames are drawn from all people in turn, losses are means over frames, and each person
has an optimizer of their own, which rests while no frame shows them. The number of Gaussians is fixed, and FLAME's
parameters are taken as tracked.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

from rsatalker_jax import sharding
from rsatalker_jax.avatar import Avatar, Gaussians, select, stack_avatars, up_to_degree
from rsatalker_jax.data.captures import Capture, check_capture
from rsatalker_jax.data.capture_collection import CaptureCollection, load_captures
from rsatalker_jax.data.conversations import data_paths
from rsatalker_jax.data.pipeline import batch_share, shuffled
from rsatalker_jax.errors import InputError
from rsatalker_jax.talker import Params
from rsatalker_jax.training import losses, optimizers
from rsatalker_jax.training.loop import Stage
from rsatalker_jax.training.rendering import (
    buffer_terms,
    camera_of,
    gaussian_rates,
    init_avatar_group,
    people_seen,
    to_float,
    to_frame_example,
    with_renderer,
)
from rsatalker_jax.training.stage_inputs import StageInputs

_MAX_PICTURES = 4


def bank_stage(inputs: StageInputs) -> Stage:
  """Trains the Gaussians of all people of `config.data.captures` (Eq. 10, 11).

  Raises:
    InputError: the captures do not fit each other, or the config wants what only one person's stage can do.
  """
  config, talker = inputs.config.avatar, inputs.talker
  if inputs.config.density.way != "none":
    raise InputError("config", "density.way", repr(inputs.config.density.way), "'none' for several people")
  if found := sorted(name for name, rate in config.flame_learning_rates.items() if rate):
    raise InputError("config", "avatar.flame_learning_rates", found, "none for several people")
  people = load_captures(
      data_paths(inputs.config.data, "captures"),
      "train",
      background=tuple(inputs.config.render.background),
      num_vertices=talker.head.v_template.shape[0],
      num_expression=talker.head.num_expression,
  )
  for capture in people.captures:
    check_capture(capture, talker.head)
  count = len(people.names)
  layout = inputs.lay_out({"avatar.batch": config.batch})
  inputs.say(f"avatar: {len(people)} training frames of {people.width}x{people.height}, {count} people")

  def loss(render, params, buffers, batch, key, step):
    del key
    shown = select(bank_of(params, buffers), batch["identity"])
    if config.steps_per_sh_degree:
      shown = up_to_degree(shown, step // config.steps_per_sh_degree)
    output = render(shown, batch["flame"], camera_of(batch, people))
    truth = to_float(batch["image"])
    terms = losses.image_loss(output.image, truth, config.dssim_weight, config.lpips_weight)  # Eq. 10
    seen = people_seen(shown.gaussians, output, batch["identity"])
    terms |= losses.gaussian_terms(
        seen, config.position_weight, config.position_threshold, config.scale_weight, config.scale_threshold
    )  # Eq. 11
    return sum(terms.values()), terms | buffer_terms([output])

  @jax.jit
  def render_shown(params, buffers, batch):
    shown = select(bank_of(params, buffers), batch["identity"])
    return talker.render(shown, batch["flame"], camera_of(batch, people)).image

  def pictures(params, buffers):
    middles = [np.flatnonzero(people.identities == number) for number in range(min(count, _MAX_PICTURES))]
    examples = [_to_example(people[int(frames[len(frames) // 2])]) for frames in middles]
    batch = jax.tree.map(lambda *x: np.stack(x), *examples)
    sheet = np.concatenate([to_float(batch["image"]), render_shown(params, buffers, batch)], axis=2)
    return {"truth_and_render": np.concatenate(list(sheet))}

  # Each person's own steps.
  rates = gaussian_rates(config, max(1, round(config.steps * min(1, config.batch / count))))
  first = init_bank(inputs, people.captures)
  transforms = optimizers.gaussian_optimizer(config.learning_rates, rates, sh_rest_share=config.sh_rest_share)
  return Stage(
      name="avatar",
      **layout,
      steps=config.steps,
      init=lambda key: first,
      batches=_batches(inputs, people),
      **with_renderer(loss, inputs, layout["mesh"], avatar_per_frame=True),
      optimizer=optimizers.by_path({
          label.replace("avatar/", "bank/"): per_person(transform) for label, transform in transforms.items()
      }),
      pictures=pictures,
  )


def bank_of(params: Params, buffers: Params) -> Avatar:
  """The bank of a run's parameters."""
  return Avatar(gaussians=Gaussians(**params[sharding.BANK]), **buffers[sharding.BANK])


def per_person(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
  """`optimizer` for each person by themselves, in arrays with people in front.

  Whoever no frame of a batch shows has a gradient of zeros: they keep their parameters and their optimizer's state, where
  Adam over the whole bank would move them on and forget what it knew of them. So schedules count each person's own steps.
  """

  def update(gradients, state, params=None):
    moved, following = jax.vmap(optimizer.update)(gradients, state, params)
    nonzero = [jnp.any(x != 0, axis=tuple(range(1, x.ndim))) for x in jax.tree.leaves(gradients)]
    shown = functools.reduce(jnp.logical_or, nonzero)
    where_shown = lambda new, old: jnp.where(shown.reshape(-1, *[1] * (new.ndim - 1)), new, old)
    return jax.tree.map(lambda x: where_shown(x, jnp.zeros_like(x)), moved), jax.tree.map(where_shown, following, state)

  return optax.GradientTransformation(jax.vmap(optimizer.init), update)


def init_bank(inputs: StageInputs, captures: Sequence[Capture]) -> tuple[Params, Params]:
  bank = stack_avatars([
      inputs.talker.avatar(*init_avatar_group(inputs, capture)) for capture in captures
  ])
  values = {field.name: getattr(bank, field.name) for field in dataclasses.fields(bank)}
  gaussians = values.pop("gaussians")
  params = {field.name: getattr(gaussians, field.name) for field in dataclasses.fields(gaussians)}
  buffers = {name: value for name, value in values.items() if value is not None}
  return {sharding.BANK: params}, {sharding.BANK: buffers}


def _batches(inputs: StageInputs, people: CaptureCollection) -> grain.IterDataset:
  """Frames of all people in turn, each person's in an order of their own, so that nobody's share depends on luck."""
  in_turn = []
  for number in range(len(people.names)):
    frames = np.flatnonzero(people.identities == number).tolist()
    in_turn.append(shuffled(frames, inputs.config.seed).repeat())
  dataset = grain.MapDataset.mix(in_turn).map(lambda frame: _to_example(people[frame]))
  return batch_share(dataset, inputs.config.avatar.batch).to_iter_dataset(inputs.read_options(16))


def _to_example(item: Mapping) -> dict:
  return to_frame_example(item) | {"identity": item["identity"]}
