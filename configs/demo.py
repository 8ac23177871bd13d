"""The embedded conversations on a laptop.

    make demo
    python train.py --config=configs/demo.py --workdir=runs/demo

A word behind a colon picks a variant of configs/ablations.py: --config=configs/demo.py:dualtalk
"""

from configs.ablations import REAL_SOUND, apply_variant
from configs.common import base_config

# Whether the demo is trained for real microphones and webcams; off, --config=configs/demo.py:real_sound does it.
_REAL_SOUND = False


def get_config(variant: str = ""):
  config = base_config()
  if _REAL_SOUND:
    config.update_from_flattened_dict(REAL_SOUND)
  return apply_variant(config, variant)
