"""Motion generators to compare with: trained by the same stage, on the same features and clips, scored by the same measures.

Each is a `motion.Generator`. What they may have beyond it is written there: a loss, codes that a stage before it trains, samples.
"""

from collections.abc import Mapping
from typing import Any

from rsatalker_jax.baselines.motion.codetalker import CodeTalker
from rsatalker_jax.baselines.motion.dualtalk import DualTalk
from rsatalker_jax.baselines.motion.emotalk import EmoTalk
from rsatalker_jax.baselines.motion.facediffuser import FaceDiffuser
from rsatalker_jax.baselines.motion.faceformer import FaceFormer
from rsatalker_jax.baselines.motion.l2l import L2L
from rsatalker_jax.baselines.motion.selftalk import SelfTalk
from rsatalker_jax.baselines.motion.timar import Timar
from rsatalker_jax.errors import InputError
from rsatalker_jax.motion import Generator, MotionConfig, MotionGenerator

__all__ = ["BASELINES", "DualTalk", "make_generator"]

# By the name that `generator.architecture` has; `config.baselines` has a section of that name for those with sizes of their own.
BASELINES: dict[str, Any] = {
    "codetalker": CodeTalker,
    "dualtalk": DualTalk,
    "emotalk": EmoTalk,
    "facediffuser": FaceDiffuser,
    "faceformer": FaceFormer,
    "l2l": L2L,
    "selftalk": SelfTalk,
    "timar": Timar,
}


def make_generator(config: MotionConfig, baselines: Mapping[str, Mapping[str, Any]]) -> Generator:
  """The generator that `config.architecture` names.

  Args:
    config: sizes and switches, of RSATalker's own.
    baselines: sizes and switches of the others, by name: the config's section.

  Raises:
    InputError: there is none of that name, or it has no causal form.
  """
  name = config.architecture
  if name == "rsatalker":
    own: Any = MotionGenerator(config)
    return own
  if name not in BASELINES:
    raise InputError("config", "generator.architecture", repr(name), " or ".join(map(repr, ("rsatalker", *BASELINES))))
  made = BASELINES[name]
  if config.causal and not made.causal_form:
    raise InputError("config", "generator.causal", f"True with {name!r}", "False: it looks ahead by design")
  return made(config, **baselines.get(name, {}))
