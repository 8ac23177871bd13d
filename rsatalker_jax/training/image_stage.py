"""The avatar stage of an image-based baseline: any of them learns from the films of one person by its own loss."""

import dataclasses
from collections.abc import Callable
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec as P

from rsatalker_jax.avatar import Avatar, Gaussians
from rsatalker_jax.baselines.image import DrivenFilm, ImageMethod, make_image_method
from rsatalker_jax.baselines.image.method import Between
from rsatalker_jax.data.captures import spread_places
from rsatalker_jax.data.pipeline import batch_share, shuffled
from rsatalker_jax.errors import InputError
from rsatalker_jax.evaluation import image_metrics
from rsatalker_jax.evaluation.validation import frame_validation
from rsatalker_jax.sharding import AXES
from rsatalker_jax.training import optimizers
from rsatalker_jax.training.checkpoints import TrainState
from rsatalker_jax.training.density_control import DensityControl, make_density_control, probe_frames
from rsatalker_jax.training.loop import Hook, Room, Stage
from rsatalker_jax.training.rendering import to_float
from rsatalker_jax.training.stage_inputs import StageInputs

_VALIDATION_FRAMES = 16


def image_stage(inputs: StageInputs) -> Stage:
  """Trains the baseline that `avatar.method` names on the films of `data.capture`, with the speech that is heard in them.

  The last eleventh of each film is held out, as published: it is what validation scores are of.

  Raises:
    InputError: no training triplet shows the person of `data.capture`.
  """
  config = inputs.config.avatar
  root = inputs.path("capture").resolve()
  films = [film for film in inputs.films.conversations if film.capture.root.resolve() == root]
  if not films:
    raise InputError(inputs.path("triplets"), "capture", "no training triplet of it", f"films of {root}, which data.capture names")
  subject = inputs.talker.subject(films)
  learnt, held_out = (DrivenFilm.of(subject, films, part) for part in ("learnt", "held out"))
  method = make_image_method(inputs.config, inputs.talker.subject(films, num_frames=len(learnt)))
  image_metrics.check_lpips(f"baselines.{config.method}", method.lpips_weight)
  layout = inputs.lay_out({"avatar.batch": config.batch})
  mesh = layout["mesh"]
  inputs.say(f"avatar: {config.method} learns from {len(learnt)} frames of {len(films)} films, {len(held_out)} more are held out")
  if not inputs.talker.head.expression_names:
    inputs.say("avatar: the head does not name its expressions: eyes and brows are not told")

  control = DensityControl()
  if method.controls_density:
    control = make_density_control(
        inputs.config.density,
        steps=config.steps,
        capacity=len(jax.eval_shape(method.init, jax.random.key(0))[0]["avatar"]["means"]),
        sizes=jnp.ones(2),  # Its Gaussians are measured in metres, in the head's frame or the body's.
        batch=config.batch,
        image_size=(subject.width, subject.height),
        mean_rate=method.mean_rate(config.steps),
        seed=inputs.config.seed,
        say=inputs.say,
    )

  def init(key):
    params, buffers = method.init(key)
    return params, buffers | control.buffers

  def pictures(params, buffers):
    middle = len(learnt) // 2
    (image,) = next(method.render(params, buffers, learnt.drive(np.array([middle])), mesh, chunk=1))
    return {"truth_and_render": np.concatenate([np.asarray(to_float(learnt[middle]["image"])), image], axis=1)}

  return Stage(
      name="avatar",
      **layout,
      steps=config.steps,
      init=init,
      batches=_batches(inputs, learnt),
      loss=_make_loss(method, control, mesh),
      room=_make_room(method, control, mesh),
      optimizer=control.on_optimizer(optimizers.by_path(method.transforms(config.steps))),
      pictures=pictures,
      evaluate=_make_evaluation(method, held_out, mesh) if len(held_out) else None,
      hooks=(*(_make_hook(between, learnt) for between in method.between(config.steps)), *control.hooks),
      probes=control.probes,
      observe=control.observe,
  )


def _batches(inputs: StageInputs, film: DrivenFilm) -> grain.IterDataset:
  examples = shuffled(film, inputs.config.seed).repeat()
  return batch_share(examples, inputs.config.avatar.batch).to_iter_dataset(inputs.read_options(16))


def _make_loss(method: ImageMethod, control: DensityControl, mesh: Mesh) -> Callable:
  """The method's loss with each device drawing its own frames."""
  frames = P(AXES)

  def part(params, buffers, batch, probes, key, step):
    key = jax.random.fold_in(key, jax.lax.axis_index(AXES))
    terms, each = method.loss(params, buffers, batch, key, step, probes)
    return {name: term[None] for name, term in terms.items()}, each

  # No check of varying manual axes: a pallas_call inside does not support it.
  spread = jax.shard_map(
      part, mesh=mesh, in_specs=(P(), P(), frames, frames, P(), P()), out_specs=frames, check_vma=False
  )

  def loss(params, buffers, batch, key, step):
    trained = {name: group for name, group in params.items() if name not in control.probes}
    terms, each = spread(trained, buffers, batch, params.get("probes", {}), key, step)
    terms = {name: jnp.mean(term) for name, term in terms.items()}
    if method.controls_density:
      gaussians, binding = Gaussians(**params["avatar"]), buffers["avatar"]["binding"]
      terms |= control.penalties(Avatar(gaussians, binding, shape=jnp.zeros(0)))
    total = sum(terms.values())
    if "radii" in each:
      total += probe_frames(params, each["radii"])
    if "overflow" in each:
      terms |= {"overflow": jnp.sum(each["overflow"]), "intersections": jnp.max(each["intersections"])}
    if "cut_rays" in each:
      terms |= {"cut_rays": jnp.mean(each["cut_rays"])}
    return total, terms

  return loss


def _make_room(method: ImageMethod, control: DensityControl, mesh: Mesh) -> Room | None:
  if not method.draws_gaussians:
    return None
  grow = lambda needed: _make_loss(method.with_room(needed), control, mesh)
  return Room("Gaussian-tile pairs", "overflow", "intersections", grow)


def _make_hook(between: Between, film: DrivenFilm) -> Hook:
  def call(state: TrainState, step: int) -> TrainState:
    params, buffers = between.call(state.params, state.buffers, step, film)
    return dataclasses.replace(state, params=params, buffers=buffers)

  return Hook(between.due, call)


def _make_evaluation(method: ImageMethod, film: DrivenFilm, mesh: Mesh) -> Callable[[Any, Any], dict[str, float]]:
  """Scores of frames that are held out, with their true pose and eyes."""
  chosen = spread_places(len(film), _VALIDATION_FRAMES)

  def evaluate(params, buffers):
    drive, start, pairs = film.drive(chosen), 0, []
    # Two at a time: no frame waits for memory that training needs.
    for images in method.render(params, buffers, drive, mesh, chunk=2):
      true = [np.asarray(to_float(film[i]["image"])) for i in chosen[start : start + len(images)]]
      pairs.append((images, np.stack(true)))
      start += len(images)
    return frame_validation(pairs)

  return evaluate
