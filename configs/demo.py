"""The embedded conversations on a laptop.

    make demo
    python train.py --config=configs/demo.py --workdir=runs/demo

Ablations of stage 1: --config=configs/demo.py:no_partner, --config=configs/demo.py:no_relation
"""

from configs.common import base_config


def get_config(ablation: str = ""):
  config = base_config()
  if ablation == "no_partner":
    config.generator.use_partner = False
  elif ablation == "no_relation":
    config.generator.use_relation = False
  elif ablation:
    raise ValueError(f"found {ablation!r} behind the colon, expected no_partner, no_relation or nothing")
  return config
