"""The paper's model on a TPU pod: configs/rsatalker.py with batches that fill 256 or 512 chips.

    python train.py --config=configs/pod.py --workdir=/shared/runs/pod            # on every host of the slice
    python train.py --config=configs/pod.py:ours --workdir=...                      # variants as in configs/rsatalker.py
    make pod-check                                                                  # what its steps take on pods (docs/scaling.md)

Hardware: a TPU v5e 16x16, v6e 16x16 or v5p 8x8x8, or any slice or node whose number of chips divides the batches; parameters lie whole on
every chip (with Adam's moments a quarter of a gigabyte for the generator: nothing that mesh.fsdp would have to split). Scores: none,
nobody has trained with it: what follows is what is known of large batches, not what was tried here.

The paper's batches, 32 windows and 2 frames, cannot be split over 256 chips. Here each chip gets a few windows and a frame or two, and

    rate   = the paper's times sqrt(k), k = batch / the paper's batch        network and Gaussians
    steps  = the paper's / sqrt(k)

With Adam a step is as long as the rate whatever the gradient's size, and its noise falls with sqrt(k): the square root keeps the noise that
a unit of progress brings (Malladi et al. 2022, "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms"; for Gaussians Zhao
et al. 2024, "On Scaling Up 3D Gaussian Splatting Training", who see it hold where a linear rule fails). Where noise alone
limits training, k times fewer steps would do; where curvature does, none fewer: from which batch on it does is not known for
this model (McCandlish et al. 2018 have the measure), so the steps go half that way: a run sees sqrt(k) times as many examples as the
paper's in sqrt(k) times fewer steps. Both papers also shorten Adam's memory, beta -> 1 - k (1 - beta), which is below zero at this k
and left as it is. Warm-up keeps its number of steps, and so takes a larger share: the raised rate needs it (Goyal et al. 2017).
"""

import math

from ml_collections import ConfigDict

from configs.rsatalker import get_config as paper_config

MOTION_BATCH = 2048  # Windows; 8 a chip of 256.
FRAMES = 512  # Of a capture; 2 a chip of 256, 1 of 512.
WINDOWS = 512  # Of films in stage 3, and as many others.


def get_config(variant: str = "") -> ConfigDict:
  config = paper_config(variant)
  longer = math.sqrt(MOTION_BATCH / config.motion.batch)
  config.motion.update(dict(
      batch=MOTION_BATCH,  # [32]
      learning_rate=config.motion.learning_rate * longer,  # [1e-4]
      steps=round(config.motion.steps / longer),  # [100_000]
  ))

  longer = math.sqrt(FRAMES / config.avatar.batch)
  fewer = lambda steps: round(steps / longer)
  for name, rate in config.avatar.learning_rates.items():
    config.avatar.learning_rates[name] = rate * longer
  # Corrections of a timestep are pulled at by its own frames alone, of which a batch has few: their rates stay.
  config.avatar.update(dict(
      batch=FRAMES,  # [2]
      steps=fewer(config.avatar.steps),  # [600_000]
      steps_per_sh_degree=fewer(config.avatar.steps_per_sh_degree),
  ))
  for section in (config.density.adaptive, config.density.mcmc):
    for name in ("start", "stop", "every"):
      section[name] = fewer(section[name])
  config.density.adaptive.reset_every = fewer(config.density.adaptive.reset_every)

  # Films are few: 512 windows with 2 frames each are more than a film of half a minute has, so that beyond a batch of a film's frames
  # more chips give stage 3 nothing but less noise in L_mesh, of which there are 512 windows of other conversations. Its
  # rate follows those: the paper's form, which has no others, takes L_mesh of the filmed windows.
  joint = config.joint
  longer = math.sqrt(WINDOWS / (joint.motion_batch or joint.batch))
  joint.update(dict(
      batch=WINDOWS,  # [2]
      motion_batch=WINDOWS if joint.motion_batch else 0,
      generator_learning_rate=joint.generator_learning_rate * longer,
      offsets_learning_rate=joint.offsets_learning_rate * longer,
      steps=round(joint.steps / longer),  # [20_000]
      avatar_learning_rate=joint.avatar_learning_rate,  # Of the rates with which stage 2 ended, which are raised already.
  ))
  # Two to three tiles for each of 150,000 Gaussians; a step that needs more makes more room. A guess would be four times as many,
  # and all of them are sorted.
  config.render.max_intersections = 2**19
  # A step of stage 3 draws eight frames on a chip in one call; two take 7 GB of a TPU's memory (docs/scaling.md).
  config.render.frames_at_once = 2
  return config
