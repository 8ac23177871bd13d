"""Stage 1: the generator learns motion from conversations (Eq. 9)."""

from collections.abc import Mapping

import grain
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rsatalker_jax.data.pipeline import MotionClip, motion_windows
from rsatalker_jax.social import orthogonality_penalty
from rsatalker_jax.talker import Params, Talker
from rsatalker_jax.training import optimizers
from rsatalker_jax.training.loop import Stage
from rsatalker_jax.training.stage_inputs import StageInputs


def motion_stage(inputs: StageInputs) -> Stage:
  """Trains the generator on conversations (Eq. 9)."""
  config, talker, mesh_loss = inputs.config.motion, inputs.fitted_talker, inputs.mesh_loss

  def loss(params, buffers, batch, key, step):
    del buffers, step
    terms = mesh_loss(generate(talker, params, batch, key), batch["motion_b"])  # Eq. 9
    tables = params["generator"]["params"].get("relation_embedding", {})  # A baseline may have none.
    terms["orthogonality"] = config.orthogonality * orthogonality_penalty(tables)
    return sum(terms.values()), terms

  return Stage(
      name="motion",
      steps=config.steps,
      init=lambda key: init_generator(talker, inputs.training_clips[0], key),
      batches=motion_batches(inputs, "motion", config.batch, config.window),
      loss=loss,
      optimizer=optimizers.by_path({
          "generator": optimizers.network_optimizer(
              config.learning_rate,
              config.steps,
              warmup=config.warmup,
              weight_decay=config.weight_decay,
              gradient_clip=config.gradient_clip,
          )
      }),
  )


def motion_batches(inputs: StageInputs, stage: str, batch: int, window: int) -> grain.IterDataset:
  """Batches of windows; says which clips are too short for one."""
  clips = inputs.training_clips
  short = [clip for clip in clips if len(clip.motion_b) < window]
  if short:
    inputs.say(f"{stage}: {len(short)} of {len(clips)} clips are shorter than a window of {window} frames and not used")
  for clip in short:
    inputs.say(f"  skipped {clip.name}: {len(clip.motion_b)} frames")
  return motion_windows(
      clips,
      window=window,
      batch_size=inputs.local_batch(batch),
      seed=inputs.config.seed,
      shard_index=jax.process_index(),
      shard_count=jax.process_count(),
      read_options=inputs.read_options(4),
  )


def generate(talker: Talker, params: Params, batch: Mapping[str, Array], key: jax.Array) -> Float[Array, "B T 56"]:
  return talker.generator.apply(
      params["generator"],
      batch["speech_a"],
      batch["motion_a"],
      batch["speech_b"],
      batch["relation"],
      deterministic=False,
      rngs={"dropout": key},
  )


def init_generator(talker: Talker, clip: MotionClip, key: jax.Array) -> tuple[Params, Params]:
  example = (clip.speech_a[:2], clip.motion_a[:2], clip.speech_b[:2], clip.relation)
  config = talker.generator.config
  # The statistics are part of the model: they go with the parameters into every checkpoint.
  statistics = {"motion_mean": jnp.asarray(config.motion_mean), "motion_std": jnp.asarray(config.motion_std)}
  return {"generator": talker.generator.init(key, *example)}, {"generator": statistics}
