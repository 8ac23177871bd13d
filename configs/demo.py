"""The embedded conversations on a laptop.

    make demo
    python train.py --config=configs/demo.py --workdir=runs/demo

A word behind a colon picks a variant of configs/ablations.py: --config=configs/demo.py:dualtalk
"""

from configs.ablations import apply_variant
from configs.common import base_config


def get_config(variant: str = ""):
  return apply_variant(base_config(), variant)
