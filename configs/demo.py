"""The embedded conversations on a laptop.

    make demo
    python train.py --config=configs/demo.py --workdir=runs/demo

A word behind a colon picks a variant of configs/ablations.py: --config=configs/demo.py:dualtalk
"""

from configs.ablations import REAL_VOICES, apply_variant
from configs.common import base_config


def get_config(variant: str = ""):
  config = base_config()
  config.data.captures = ("capture", "capture_amara")  # Two people on film: an avatar for each …
  config.avatar.steps = 600  # … which has half of a batch.
  config.density.adaptive.stop = 360
  config.speech.update(encoder="whisper", checkpoint="assets/whisper")  # Its first two layers, which voices are less strange to.
  config.motion.steps = 2500
  config.joint.steps = 50
  config.joint.generator_learning_rate = 2e-6  # Faster, pixels take from the motion of unseen conversations what they add to that of the filmed ones.
  # A little of what generated motion's pixels want of the Gaussians, and LPIPS against the blur that they would become.
  config.joint.update(avatar_share=0.05, lpips_weight=0.1)
  config.update_from_flattened_dict(REAL_VOICES)
  return apply_variant(config, variant)
