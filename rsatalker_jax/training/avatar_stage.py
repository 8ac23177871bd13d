"""Stage 2: the Gaussians learn a person's looks from a capture with tracked motion (Eq. 10, 11)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rsatalker_jax.avatar import up_to_degree
from rsatalker_jax.data.captures import transforms_file
from rsatalker_jax.data.pipeline import batch_share, shuffled
from rsatalker_jax.evaluation.validation import frame_validation
from rsatalker_jax.talker import render_sequence
from rsatalker_jax.training import losses, optimizers
from rsatalker_jax.training.density_control import make_density_control, probe_radii
from rsatalker_jax.training.loop import Stage
from rsatalker_jax.training.rendering import (
    buffer_terms,
    camera_of,
    capacity_of,
    gaussian_rates,
    init_avatar_group,
    people_seen,
    to_float,
    to_frame_example,
    triangle_sizes,
    with_renderer,
)
from rsatalker_jax.training.stage_inputs import StageInputs

_VALIDATION_FRAMES = 16


def avatar_stage(inputs: StageInputs) -> Stage:
  """Trains the Gaussians on a capture with tracked motion (Eq. 10, 11)."""
  config, talker = inputs.config.avatar, inputs.talker
  capture = inputs.talker.open_capture(inputs.path("capture"), "train")
  layout = inputs.lay_out({"avatar.batch": config.batch})
  inputs.say(f"avatar: {len(capture)} training frames of {capture.width}x{capture.height}")

  rates = gaussian_rates(config, config.steps)
  control = make_density_control(
      inputs.config.density,
      steps=config.steps,
      capacity=capacity_of(inputs),
      sizes=triangle_sizes(talker, capture)[:, 0],
      batch=config.batch,
      image_size=(capture.width, capture.height),
      mean_rate=rates("means"),
      seed=inputs.config.seed,
      say=inputs.say,
  )
  timesteps = np.unique(capture.timesteps)
  flame_rates = {name: rate for name, rate in config.flame_learning_rates.items() if rate}
  first_params, first_buffers = init_avatar_group(inputs, capture)

  def init(key):
    del key
    params, buffers = dict(first_params), first_buffers
    if flame_rates:
      flame = to_frame_example(capture[0])["flame"]
      params["flame"] = {name: jnp.zeros((len(timesteps), *flame[name].shape)) for name in flame_rates}
    return params, buffers | control.buffers

  def loss(render, params, buffers, batch, key, step):
    del key
    avatar = talker.avatar(params, buffers)
    if config.steps_per_sh_degree:
      avatar = up_to_degree(avatar, step // config.steps_per_sh_degree)
    flame = dict(batch["flame"])
    for name, corrections in params.get("flame", {}).items():
      flame[name] += corrections[batch["row"]]
    output = render(avatar, flame, camera_of(batch, capture), None, params.get("probes", {}))
    terms = losses.image_loss(output.image, to_float(batch["image"]), config.dssim_weight, config.lpips_weight)  # Eq. 10
    seen = people_seen(avatar.gaussians, output, None)
    terms |= losses.gaussian_terms(
        seen, config.position_weight, config.position_threshold, config.scale_weight, config.scale_threshold
    )  # Eq. 11
    terms |= control.penalties(params, buffers)
    return sum(terms.values()) + probe_radii(params, output.radii), terms | buffer_terms([output])

  def pictures(params, buffers):
    item = jax.tree.map(lambda x: x[None], to_frame_example(capture[len(capture) // 2]))
    avatar, camera = talker.avatar(params, buffers), camera_of(item, capture)
    (image,) = next(render_sequence(talker, layout["mesh"], avatar, item["flame"], camera, chunk=1))
    return {"truth_and_render": np.concatenate([np.asarray(to_float(item["image"][0])), image], axis=1)}

  examples = shuffled(capture, inputs.config.seed).repeat()
  row = lambda item: {"row": np.int32(np.searchsorted(timesteps, item["timestep"]))}
  batches = batch_share(examples.map(lambda item: to_frame_example(item) | row(item)), config.batch)
  return Stage(
      name="avatar",
      **layout,
      steps=config.steps,
      init=init,
      batches=batches.to_iter_dataset(inputs.read_options(16)),
      **with_renderer(loss, inputs, layout["mesh"]),
      optimizer=control.on_optimizer(
          optimizers.by_path(
              optimizers.gaussian_optimizer(config.learning_rates, rates, sh_rest_share=config.sh_rest_share)
              | {f"flame/{name}": optax.adam(rate) for name, rate in flame_rates.items()}
          )
      ),
      pictures=pictures,
      evaluate=_make_evaluation(inputs),
      hooks=control.hooks,
      probes=control.probes,
      observe=control.observe,
  )


def _make_evaluation(inputs: StageInputs):
  """Scores of frames of the capture's split val, with tracked motion; None where it has no such split."""
  if not transforms_file(inputs.path("capture"), "val").is_file():
    inputs.say("avatar: the capture has no split val: nothing is held out while training")
    return None
  capture, talker = inputs.talker.open_capture(inputs.path("capture"), "val"), inputs.talker
  items = np.unique(np.linspace(0, len(capture) - 1, _VALIDATION_FRAMES).round().astype(int))
  # One at a time: no frame waits for memory that training needs.
  render = jax.jit(lambda avatar, flame, camera: talker.render(avatar, flame, camera).image)

  def evaluate(params, buffers):
    avatar, pairs = talker.avatar(params, buffers), []
    for item in items:
      shown = jax.tree.map(lambda x: x[None], to_frame_example(capture[int(item)]))
      pairs.append((np.asarray(render(avatar, shown["flame"], camera_of(shown, capture))), np.asarray(to_float(shown["image"]))))
    return frame_validation(pairs)

  return evaluate
