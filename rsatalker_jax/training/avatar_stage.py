"""Stage 2: the Gaussians learn people's looks from captures with tracked motion (Eq. 10, 11)."""

import grain
import jax
import numpy as np

from rsatalker_jax.avatar import up_to_degree
from rsatalker_jax.data.capture_collection import CaptureCollection
from rsatalker_jax.data.captures import spread_places, transforms_file
from rsatalker_jax.data.pipeline import batch_share, shuffled
from rsatalker_jax.evaluation import image_metrics
from rsatalker_jax.evaluation.validation import frame_validation
from rsatalker_jax.talker import render_sequence
from rsatalker_jax.training import losses, optimizers
from rsatalker_jax.training.density_control import make_density_control, probe_frames
from rsatalker_jax.training.loop import Stage
from rsatalker_jax.training.people import People
from rsatalker_jax.training.rendering import (
    buffer_terms,
    camera_of,
    capacity_of,
    gaussian_rates,
    people_seen,
    to_float,
    to_frame_example,
    with_renderer,
)
from rsatalker_jax.training.stage_inputs import StageInputs

_MAX_PICTURES = 4
_VALIDATION_FRAMES = 16


def avatar_stage(inputs: StageInputs) -> Stage:
  """Trains the Gaussians of the person of `data.capture`, or of all people of `data.captures` (Eq. 10, 11).

  Raises:
    InputError: see `People.of` and `make_density_control`.
  """
  config, talker = inputs.config.avatar, inputs.talker
  people = People.of(inputs)
  frames = CaptureCollection(people.captures, people.names)
  count = len(people.names)
  layout = inputs.lay_out({"avatar.batch": config.batch})
  of = "" if people.alone else f" of {count} people, {', '.join(people.names)}"
  image_metrics.check_lpips("avatar.lpips_weight", config.lpips_weight, (frames.width, frames.height))
  inputs.say(f"avatar: {len(frames)} training frames of {frames.width}x{frames.height}{of}")

  # Each person's own steps.
  rates = gaussian_rates(config, max(1, round(config.steps * min(1, config.batch / count))))
  control = make_density_control(
      inputs.config.density,
      steps=config.steps,
      capacity=capacity_of(inputs),
      sizes=people.sizes[0, :, 0] if people.alone else people.sizes[..., 0],
      batch=config.batch,
      image_size=(frames.width, frames.height),
      mean_rate=rates("means"),
      seed=inputs.config.seed,
      say=inputs.say,
      names=None if people.alone else people.names,
  )

  def loss(render, params, buffers, batch, key, step):
    del key
    identity = batch["identity"]
    shown = people.show(talker, params, buffers, identity)
    if config.steps_per_sh_degree:
      shown = up_to_degree(shown, step // config.steps_per_sh_degree)
    flame = people.correct(params, batch["flame"], identity, batch["row"])
    output = render(shown, flame, camera_of(batch, frames), None, params.get("probes", {}))
    terms = losses.image_loss(output.image, to_float(batch["image"]), config.dssim_weight, config.lpips_weight)  # Eq. 10
    seen = people_seen(shown.gaussians, output, None if people.alone else identity)
    terms |= losses.gaussian_terms(
        seen, config.position_weight, config.position_threshold, config.scale_weight, config.scale_threshold
    )  # Eq. 11
    terms |= control.penalties(shown)
    return sum(terms.values()) + probe_frames(params, output.radii, identity), terms | buffer_terms([output])

  def pictures(params, buffers):
    sheet = []
    for number in range(min(count, _MAX_PICTURES)):
      own = np.flatnonzero(frames.identities == number)
      item = jax.tree.map(lambda x: x[None], people.example(frames[int(own[len(own) // 2])]))
      avatar, camera = people.one(talker, params, buffers, number), camera_of(item, frames)
      flame = people.correct(params, item["flame"], item["identity"], item["row"])
      (image,) = next(render_sequence(talker, layout["mesh"], avatar, flame, camera, chunk=1))
      sheet.append(np.concatenate([np.asarray(to_float(item["image"][0])), image], axis=1))
    return {"truth_and_render": np.concatenate(sheet)}

  return Stage(
      name="avatar",
      **layout,
      steps=config.steps,
      init=lambda key: (people.init[0], people.init[1] | control.buffers),
      batches=_batches(inputs, frames, people),
      **with_renderer(loss, inputs, layout["mesh"], avatar_per_frame=not people.alone),
      optimizer=control.on_optimizer(
          optimizers.by_path(
              people.transforms(
                  optimizers.gaussian_optimizer(config.learning_rates, rates, sh_rest_share=config.sh_rest_share)
              )
              | people.flame_transforms(config.flame_learning_rates)
          )
      ),
      pictures=pictures,
      evaluate=_make_evaluation(inputs, people),
      hooks=control.hooks,
      probes=control.probes,
      observe=control.observe,
  )


def _batches(inputs: StageInputs, frames: CaptureCollection, people: People) -> grain.IterDataset:
  """Frames of all people in turn, each person's in an order of their own, so that nobody's share depends on luck."""
  in_turn = []
  for number in range(len(people.names)):
    own = np.flatnonzero(frames.identities == number).tolist()
    in_turn.append(shuffled(own, inputs.config.seed).repeat())
  dataset = grain.MapDataset.mix(in_turn) if len(in_turn) > 1 else in_turn[0]
  examples = dataset.map(lambda frame: people.example(frames[frame]))
  return batch_share(examples, inputs.config.avatar.batch).to_iter_dataset(inputs.read_options(16))


def _make_evaluation(inputs: StageInputs, people: People):
  """Scores of frames of the captures' splits val, with tracked motion: means over all people's; None where nobody's capture
  has such a split."""
  talker = inputs.talker
  held_out = {}
  for number, capture in enumerate(people.captures):
    if transforms_file(capture.root, "val").is_file():
      held_out[number] = talker.open_capture(capture.root, "val")
    else:
      whose = "the capture" if people.alone else f"{people.names[number]}'s capture"
      inputs.say(f"avatar: {whose} has no split val: nothing is held out while training")
  if not held_out:
    return None
  shown = {number: spread_places(len(capture), -(-_VALIDATION_FRAMES // len(held_out))) for number, capture in held_out.items()}
  # One at a time: no frame waits for memory that training needs.
  render = jax.jit(lambda avatar, flame, camera: talker.render(avatar, flame, camera).image)

  def evaluate(params, buffers):
    pairs = []
    for number, capture in held_out.items():
      avatar = people.one(talker, params, buffers, number)
      for item in shown[number]:
        frame = jax.tree.map(lambda x: x[None], to_frame_example(capture[int(item)]))
        drawn = render(avatar, frame["flame"], camera_of(frame, capture))
        pairs.append((np.asarray(drawn), np.asarray(to_float(frame["image"]))))
    return frame_validation(pairs)

  return evaluate
