"""The embedded conversations on a laptop.

    make demo
    python train.py --config=configs/demo.py --workdir=runs/demo

Variants, by a word behind a colon (--config=configs/demo.py:no_partner):
    full          nothing left out
    no_partner    the generator does not see the partner (speaker-only)
    no_relation   the generator does not see the relation
    causal        the generator sees no future, so that it can answer while a conversation goes on (docs/streaming.md)
    paper_loss    Eq. 9 as the paper writes it: one norm over all parameters, no velocity term
"""

from configs.common import base_config

_VARIANTS = {
    "": {},
    "full": {},
    "no_partner": {"generator.use_partner": False},
    "no_relation": {"generator.use_relation": False},
    "causal": {"generator.causal": True, "speech.causal": True},
    "paper_loss": {"motion.loss.plain_norm": True},
}


def get_config(variant: str = ""):
  if variant not in _VARIANTS:
    raise ValueError(f"found {variant!r} behind the colon, expected {', '.join(filter(None, _VARIANTS))} or nothing")
  config = base_config()
  config.update_from_flattened_dict(_VARIANTS[variant])
  return config
