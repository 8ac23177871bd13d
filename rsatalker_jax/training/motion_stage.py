"""Stage 1: the generator learns motion from conversations (Eq. 9); and the stage that some baselines have before it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from rsatalker_jax.data.pipeline import motion_windows
from rsatalker_jax.errors import InputError
from rsatalker_jax.evaluation.validation import motion_validation
from rsatalker_jax.motion import can
from rsatalker_jax.social import orthogonality_penalty
from rsatalker_jax.social.relation import UNKNOWN
from rsatalker_jax.talker import Params
from rsatalker_jax.training import losses, optimizers
from rsatalker_jax.training.loop import Stage
from rsatalker_jax.training.stage_inputs import StageInputs


# Where a baseline's parameters lie that the stage "codes" trains.
_CODES = "generator/params/codes"


def motion_stage(inputs: StageInputs) -> Stage:
  """Trains the generator on conversations (Eq. 9), and with it the embeddings and the motion socialnet, unless the social
  module enters with stage 3, as in the paper (`motion.social_module`). A generator that has a loss of its own is trained by
  that, and codes that the stage "codes" has trained stay as they are."""
  config, talker = inputs.config.motion, inputs.talker
  layout = inputs.lay_out({"motion.batch": config.batch}, config.accumulate)
  weights = losses.MotionLossWeights(**config.loss)
  decay, init_generator = talker.generator.average, motion_init(inputs)

  def init(key):
    params, buffers = init_generator(key)
    return params, buffers | ({"average": {"generator": params["generator"]}} if decay else {})

  def average(params, buffers):
    moved = optax.incremental_update(params["generator"], buffers["average"]["generator"], 1 - decay)
    return buffers | {"average": {"generator": moved}}

  def loss(params, buffers, batch, key, step):
    if not config.social_module:
      batch = batch | {"relation": jnp.full_like(batch["relation"], UNKNOWN)}
    if can(talker.generator, "training_terms"):
      terms = talker.training_terms(params, buffers, batch, key, step / config.steps)
    else:
      predicted = talker.generate(params, buffers, batch, dropout=key)
      compared = (motion_and_lips(inputs, motion) for motion in (predicted, batch["motion_b"]))
      terms = losses.mesh_terms(weights, *compared, buffers["generator"])  # Eq. 9
    terms["orthogonality"] = config.orthogonality * orthogonality_of(params)
    return sum(terms.values()), terms

  trained = ("generator", "social") if config.social_module else ("generator",)
  frozen = {_CODES: optax.set_to_zero()} if can(talker.generator, "codes_terms") else {}
  return Stage(
      name="motion",
      steps=config.steps,
      **layout,
      init=init,
      batches=motion_batches(inputs, "motion", config.batch, config.window),
      loss=loss,
      optimizer=optimizers.by_path({"|".join(trained): _network_optimizer(config), **frozen}),
      evaluate=make_motion_evaluation(inputs, told=config.social_module),
      follow=average if decay else None,
  )


def codes_stage(inputs: StageInputs) -> Stage:
  """Trains the codes of which a baseline makes motion, before its motion stage.

  Raises:
    InputError: the generator has none.
  """
  config, talker = inputs.config.codes, inputs.talker
  if not can(talker.generator, "codes_terms"):
    name = inputs.config.generator.architecture
    raise InputError("config", "stages", f"'codes' with generator.architecture={name!r}", "stages that it has: it makes no codes")

  def loss(params, buffers, batch, key, step):
    terms = talker.codes_terms(params, buffers, batch, key, step / config.steps)
    return sum(terms.values()), terms

  return Stage(
      name="codes",
      steps=config.steps,
      **inputs.lay_out({"codes.batch": config.batch}),
      init=motion_init(inputs),
      batches=motion_batches(inputs, "codes", config.batch, config.window),
      loss=loss,
      optimizer=optimizers.by_path({_CODES: _network_optimizer(config)}),
  )


def _network_optimizer(config: ConfigDict) -> optax.GradientTransformation:
  """AdamW by the values of a stage's section."""
  return optimizers.network_optimizer(
      config.learning_rate,
      config.steps,
      warmup=config.warmup,
      weight_decay=config.weight_decay,
      gradient_clip=config.gradient_clip,
  )


def motion_and_lips(inputs: StageInputs, motion: Float[Array, "B T 56"]) -> dict[str, Float[Array, "B T ..."]]:
  """What `losses.mesh_terms` compares of a motion."""
  opening = inputs.lip_opening
  return {"motion": motion} if opening is None else {"motion": motion, "lips": opening(motion)}


def orthogonality_of(params: Params) -> Float[Array, ""]:
  return orthogonality_penalty(params["social"]["params"]["relation_embedding"])


def motion_batches(inputs: StageInputs, stage: str, batch: int, window: int) -> grain.IterDataset:
  """Batches of windows; says which clips are too short for one."""
  clips = inputs.training_clips
  short = [clip for clip in clips if len(clip.motion_b) < window]
  if short:
    inputs.say(f"{stage}: {len(short)} of {len(clips)} clips are shorter than a window of {window} frames and not used")
  for clip in short:
    inputs.say(f"  skipped {clip.name}: {len(clip.motion_b)} frames")
  if len(short) == len(clips):
    longest = max(len(clip.motion_b) for clip in clips)
    raise InputError("config", f"{stage}.window", window, f"at most {longest}, the frames of the longest training clip")
  return motion_windows(
      clips,
      window=window,
      batch_size=batch,
      seed=inputs.config.seed,
      webcam=inputs.webcam,
      read_options=inputs.read_options(4),
  )


def motion_init(inputs: StageInputs) -> Callable[[jax.Array], tuple[Params, Params]]:
  """key -> groups "generator" and "social" of params, fresh, and the statistics of the training motion as buffers."""
  talker, clip, statistics = inputs.talker, inputs.training_clips[0], inputs.statistics

  def init(key):
    social = talker.social.init(key, clip.relation)
    feature = talker.social.apply(social, clip.relation)
    generator = talker.generator.init(key, clip.speech_a[:2], clip.motion_a[:2], clip.speech_b[:2], feature)
    return {"generator": {"params": generator["params"]}, "social": social}, {"generator": statistics}

  return init


def make_motion_evaluation(
    inputs: StageInputs, told: bool = True
) -> Callable[[Params, Params], Mapping[str, float]] | None:
  """Scores of the motion of the split val; None where there is no such split.

  Args:
    told: whether the generator is told the relations.
  """
  clips = inputs.validation_clips
  if not clips:
    inputs.say("no conversations of the split val: nothing is held out while training")
    return None
  if not told:
    clips = [dataclasses.replace(clip, relation=np.full(2, UNKNOWN, np.int32)) for clip in clips]
  return lambda params, buffers: motion_validation(functools.partial(inputs.talker.generate_clip, params, buffers), clips)
