"""Stage 3: everything but the speech encoder learns from pixels and motion together (Eq. 13)."""

import dataclasses
import functools

import grain
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rsatalker_jax.data.captures import spread_places
from rsatalker_jax.errors import InputError
from rsatalker_jax.evaluation import image_metrics
from rsatalker_jax.evaluation.validation import frame_validation
from rsatalker_jax.head import pose_for
from rsatalker_jax.motion import can
from rsatalker_jax.sharding import BANK
from rsatalker_jax.training import losses, optimizers
from rsatalker_jax.training.film_windows import MOTION, JointWindows, Shots, film_alignments
from rsatalker_jax.training.loop import Stage
from rsatalker_jax.training.motion_stage import (
    make_motion_evaluation,
    motion_and_lips,
    motion_batches,
    motion_init,
    orthogonality_of,
)
from rsatalker_jax.training.people import People
from rsatalker_jax.training.rendering import (
    buffer_terms,
    camera_of,
    continued_gaussian_rates,
    let_through,
    people_seen,
    with_renderer,
)
from rsatalker_jax.training.stage_inputs import StageInputs
from rsatalker_jax.types import MOTION_DIM

_VALIDATION_FRAMES = 16


def joint_stage(inputs: StageInputs) -> Stage:
  """Trains everything but the speech encoder, from pixels and motion together (Eq. 13).

  A batch holds windows of filmed conversations, each with frames of its own film. With `motion_batch` it also holds windows
  of all training conversations, on which L_mesh is taken then: films are few, and on them alone the generator would forget
  how others talk. What else is added to the paper's losses is named by `losses.JointWeights`.

  Raises:
    InputError: a value of the config's section, films that do not go with it, or a generator that learns from motion alone.
  """
  config, talker = inputs.config.joint, inputs.talker
  if can(talker.generator, "training_terms"):
    name = inputs.config.generator.architecture
    raise InputError("config", "stages", f"'joint' with generator.architecture={name!r}", "'motion' alone: its loss is of motion")
  if config.drawn_weight and config.motion_batch < config.batch:
    raise InputError("config", "joint.motion_batch", config.motion_batch, f"at least joint.batch, {config.batch}: they are drawn")
  films = inputs.films
  people = People.of_films(inputs, films)
  first = people.captures[0]
  image_metrics.check_lpips("joint.lpips_weight", config.lpips_weight, (first.width, first.height))
  windows = JointWindows.of(inputs, films, people)
  sizes = {"joint.batch": config.batch, "joint.motion_batch": config.motion_batch}
  layout = inputs.lay_out({key: batch for key, batch in sizes.items() if batch})
  weights = joint_weights(inputs.config)
  init_motion = motion_init(inputs)

  def loss(render, params, buffers, batch, key, step):
    del step
    filmed, others = batch["filmed"], batch.get("others")
    spoken = {name: filmed[name] for name in MOTION}
    if others is not None:
      spoken = {name: jnp.concatenate([spoken[name], others[name]]) for name in MOTION}
    predicted = talker.generate(params, buffers, spoken, dropout=key)
    count = len(filmed["frame"])
    # Over all conversations, the filmed ones as often as others: in every batch they would be learnt by heart.
    learnt = slice(count if others is not None else 0, None)

    shots = Shots.of(filmed, params, people, config.frames)
    avatar = people.show(talker, params, buffers, shots.identity)
    offsets_of = lambda params, motion: shots.offsets(talker, params, buffers, motion)  # Eq. 8
    share = functools.partial(jax.tree.map, functools.partial(let_through, share=config.avatar_share))

    def draw(motions, avatar, offsets):
      """Images of all of `motions` with their offsets, each on the film's bodies under the film's cameras, in one call."""
      repeat = lambda tree: jax.tree.map(lambda x: jnp.concatenate([x] * len(motions)), tree)
      join = lambda *parts: jnp.concatenate(parts)
      flame = pose_for(join(*map(shots.take, motions)), repeat(shots.flame), repeat(shots.alignment))
      shown = avatar if people.alone else repeat(avatar)
      output = render(shown, flame, camera_of(repeat(shots.view), people.captures[0]), jax.tree.map(join, *offsets))
      return jnp.split(output.image, len(motions)), output

    # Of conversations that nobody filmed as many frames are drawn, of the first of the other windows.
    unfilmed = slice(count, 2 * count)
    generated = [predicted[:count]] + [predicted[unfilmed]] * bool(weights.drawn)
    # What moves the Gaussians feels a share; the motion that it sees, all.
    held = params | {group: share(params[group]) for group in ("social", "offsets") if group in params}
    offsets = [offsets_of(held, motion) for motion in generated]
    images, output = draw(generated, dataclasses.replace(avatar, gaussians=share(avatar.gaussians)), offsets)
    outputs, rendered = [output], {"generated": images[0]}
    if weights.tracked:
      corrections = offsets_of(params, spoken["motion_b"][:count])
      tracked = render(avatar, shots.flame, camera_of(shots.view, people.captures[0]), corrections)
      outputs.append(tracked)
      rendered["tracked"] = tracked.image
    if weights.drawn:
      true = spoken["motion_b"][unfilmed]
      (truth,), output = jax.lax.stop_gradient(draw([true], avatar, [offsets_of(params, true)]))
      outputs.append(output)
      rendered |= {"drawn": images[1], "drawn_truth": truth}
    # Gaussians that any of the film's frames shows; the film's are the first of the call's frames.
    first = dataclasses.replace(outputs[0], radii=outputs[0].radii[: len(shots.identity)])
    rendered |= people_seen(avatar.gaussians, first, None if people.alone else shots.identity)
    if talker.knows_relation:
      rendered["offsets"] = jnp.asarray(offsets_of(params, generated[0])) / people.sizes[shots.identity]
    if weights.orthogonality:
      rendered["orthogonality"] = orthogonality_of(params)
    given = {
        "target": motion_and_lips(inputs, spoken["motion_b"][learnt]),
        "statistics": buffers["generator"],
        "image": shots.image,
    }
    terms = losses.joint_terms(weights, given, motion_and_lips(inputs, predicted[learnt]), rendered)
    return sum(terms.values()), terms | buffer_terms(outputs)  # Eq. 13

  def init(key):
    generator_key, offsets_key = jax.random.split(key)
    params, buffers = init_motion(generator_key)
    if talker.knows_relation:
      query = talker.social.apply(params["social"], jnp.zeros(2, jnp.int32), method="query")
      params["offsets"] = talker.offset_net.init(offsets_key, query, jnp.zeros(()), jnp.zeros(MOTION_DIM))
    more_params, more_buffers = people.init
    return params | more_params, buffers | more_buffers | {"film": {"alignment": jnp.asarray(film_alignments(films, people))}}

  batches = {"filmed": windows.batches(inputs)}
  if config.motion_batch:
    batches["others"] = motion_batches(inputs, "joint", config.motion_batch, config.window)
  zipped = grain.experimental.ZipIterDataset(tuple(batches.values()))
  return Stage(
      name="joint",
      steps=config.steps,
      **layout,
      init=init,
      batches=zipped.map(lambda parts: dict(zip(batches, parts))),
      **with_renderer(loss, inputs, layout["mesh"], avatar_per_frame=not people.alone),
      optimizer=_make_optimizer(inputs.config, people, talker.knows_relation),
      evaluate=_make_evaluation(inputs, people),
  )


def joint_weights(config: ConfigDict) -> losses.JointWeights:
  """The weights of Eq. 13 and its additions that a config asks for."""
  joint, avatar = config.joint, config.avatar
  return losses.JointWeights(
      motion=losses.MotionLossWeights(**config.motion.loss),
      image=joint.image_weight,
      position=joint.position_weight,
      offset=joint.offset_weight,
      position_threshold=avatar.position_threshold,
      offset_threshold=joint.offset_threshold,
      dssim=avatar.dssim_weight,
      lpips=joint.lpips_weight,
      tracked=joint.tracked_weight,
      drawn=joint.drawn_weight,
      scale=avatar.scale_weight,
      scale_threshold=avatar.scale_threshold,
      orthogonality=config.motion.orthogonality,
  )


def _make_optimizer(config: ConfigDict, people: People, with_offsets: bool):
  joint, avatar = config.joint, config.avatar
  warmup = joint.steps // 10
  network = functools.partial(optimizers.network_optimizer, steps=joint.steps, warmup=warmup)
  rates = continued_gaussian_rates(
      avatar, joint.steps, share=joint.avatar_learning_rate, final_share=joint.final_avatar_learning_rate, warmup=joint.avatar_warmup
  )
  gaussians = optimizers.gaussian_optimizer(avatar.learning_rates, rates, sh_rest_share=avatar.sh_rest_share)
  transforms = {"generator|social": network(joint.generator_learning_rate)}
  if with_offsets:
    transforms["offsets"] = network(joint.offsets_learning_rate)
  return optimizers.by_path(transforms | people.transforms(gaussians))


def _make_evaluation(inputs: StageInputs, people: People):
  """Scores of generated motion of the split val, and of frames of it: drawn against true motion, both by the avatars, of each
  person in turn, and against its films, where it has some."""
  motion = make_motion_evaluation(inputs)
  if motion is None:
    return None
  talker, clips = inputs.talker, inputs.validation_clips
  own = len(people.captures) if people.groups[0] == BANK else 1  # Nobody's else who is in films alone.
  alignments = np.asarray(film_alignments(inputs.films, people)).reshape(-1, 3)
  films = inputs.validation_films
  known = {capture.root.resolve() for capture in people.captures[:own]}
  filmed = [film for film in films.conversations if film.capture.root.resolve() in known]
  standing = [jax.tree.map(lambda x: x[:1], capture.read_flame([0])) for capture in people.captures[:own]]
  views = [
      dict(zip(("world_to_camera", "intrinsics"), capture.read_cameras([0]))) for capture in people.captures[:own]
  ]
  render = jax.jit(lambda *given: talker.render(*given).image)

  def draw(params, buffers, person, flame, view, clip, frame, motion):
    offsets = None
    if talker.knows_relation:
      relation = jnp.asarray(clip.relation)[None]
      offsets = talker.gaussian_offsets(params, buffers, relation, jnp.float32([frame]), motion[frame : frame + 1])
    avatar = people.one(talker, params, buffers, person)
    return np.asarray(render(avatar, flame, camera_of(view, people.captures[0]), offsets))

  def evaluate(params, buffers):
    scores = dict(motion(params, buffers))
    motions = {}

    def motion_of(clip):
      if clip.name not in motions:
        motions[clip.name] = talker.generate_clip(params, buffers, clip)
      return motions[clip.name]

    pairs = []
    for number in range(_VALIDATION_FRAMES):
      clip, person = clips[number * len(clips) // _VALIDATION_FRAMES], number % own
      frame = (2 * number + 1) * len(clip.motion_b) // (2 * _VALIDATION_FRAMES)
      pose = lambda motion: pose_for(motion[frame : frame + 1], standing[person], alignments[person][None])
      pairs.append(tuple(
          draw(params, buffers, person, pose(m), views[person], clip, frame, m) for m in (motion_of(clip), clip.motion_b)
      ))
    scores |= {f"drawn_{name}": value for name, value in frame_validation(pairs).items()}
    pairs = []
    for film in filmed:
      person = people.number(film.capture.root)
      for place in spread_places(len(film.frames), _VALIDATION_FRAMES):
        shown = film.read([place])
        frame = int(film.frames[place])
        generated = motion_of(film.clip)
        flame = pose_for(generated[frame : frame + 1], shown["flame"], film.alignment[None])
        camera = {name: shown[name] for name in views[0]}
        pairs.append((draw(params, buffers, person, flame, camera, film.clip, frame, generated), shown["image"]))
    if pairs:
      scores |= {f"filmed_{name}": value for name, value in frame_validation(pairs).items()}
    return scores

  return evaluate
