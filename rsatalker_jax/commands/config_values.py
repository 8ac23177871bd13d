"""What each value of a config may be. Every command looks before it does anything, so that a wrong one is one line."""

import math
import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from rsatalker_jax.baselines.image import METHODS
from rsatalker_jax.baselines.motion import BASELINES
from rsatalker_jax.errors import InputError
from rsatalker_jax.motion import MotionGenerator, longest_lookahead
from rsatalker_jax.types import BASES, FPS, STAGES
from splat_kernels import implementations

_MOST = 2**31 - 1  # Steps and seeds are counted in 32 bits.


class Rule(NamedTuple):
  """Attributes:
    accepts: whether a value may be.
    expected: what a value should be, for the line of the error.
  """

  accepts: Callable[[Any], bool]
  expected: str


def _whole(low: int, high: int = _MOST) -> Rule:
  expected = f"a whole number of {low} to {high}" if high < _MOST else f"a whole number of at least {low}"
  return Rule(lambda x: _is_whole(x) and low <= x <= high, expected)


def _odd() -> Rule:
  return Rule(lambda x: _is_whole(x) and 1 <= x <= _MOST and x % 2 == 1, "an odd number of at least 1")


def _one_of(*values: int | str) -> Rule:
  # 1 == 1.0 == True: the type counts, too.
  return Rule(lambda x: any(type(x) is type(value) and x == value for value in values), " | ".join(map(repr, values)))


def _number(low: float = 0.0, high: float = math.inf, *, above: bool = False, below: bool = False) -> Rule:
  """A finite number from `low` to `high`; with `above` and `below` without those themselves."""
  fits = lambda x: (low < x if above else low <= x) and (x < high if below else x <= high)
  expected = f"a number {'above' if above else 'of at least'} {low:g}"
  if high < math.inf:
    expected = f"{expected} and {'below' if below else 'at most'} {high:g}"
  return Rule(lambda x: _is_number(x) and fits(x), expected)


def _or_none(rule: Rule) -> Rule:
  return Rule(lambda x: x is None or rule.accepts(x), f"None or {rule.expected}")


def _is_whole(x: Any) -> bool:
  return isinstance(x, numbers.Integral) and not isinstance(x, bool)


def _is_number(x: Any) -> bool:
  return isinstance(x, numbers.Real) and not isinstance(x, bool) and -math.inf < x < math.inf


def _is_path(x: Any) -> bool:
  return isinstance(x, str) and x.strip() != "" and "\0" not in x


def _is_relation(x: Any) -> bool:
  from rsatalker_jax.social.relation import parse_relation

  try:
    parse_relation(x)
  except (InputError, AttributeError):  # No text has no `split`.
    return False
  return True


def _is_group(x: Any) -> bool:
  from rsatalker_jax.data.seamless.names import parse_group

  return isinstance(x, str) and parse_group(x) is not None


def _is_sharding_rule(x: Any) -> bool:
  if not (isinstance(x, (tuple, list)) and len(x) == 2 and isinstance(x[0], str)):
    return False
  try:
    re.compile(x[0])
  except re.error:
    return False
  named = [axis for axis in x[1] if axis is not None] if isinstance(x[1], (tuple, list)) else []
  return x[1] == "longest" or (_several(x[1], lambda axis: axis in (None, "data", "fsdp"), different=False) and _several(named, bool))


def _is_halved(whole: int, part: int) -> bool:
  """Whether `part` is `whole` halved once or more often."""
  return whole % part == 0 and whole > part and (whole // part).bit_count() == 1


def _several(x: Any, accepts: Callable[[Any], bool], *, different: bool = True) -> bool:
  """Whether x is a tuple, or a list as in config.json, whose members all are accepted and differ."""
  return isinstance(x, (tuple, list)) and all(map(accepts, x)) and not (different and len(set(x)) < len(x))


_FLAG = Rule(lambda x: isinstance(x, bool), "True or False")
_PATH = Rule(_is_path, "a path")
_PATHS = Rule(lambda x: _several(x, _is_path), "a tuple of different paths")
_ANY_TEXT = Rule(lambda x: isinstance(x, str) and "\0" not in x, "a text")
_TITLE = Rule(lambda x: _is_path(x) and not set(x) & set("|\n\r"), "one line of text, without |, which divides a table")
_COUNT, _COUNT_OR_0 = _whole(1), _whole(0)
_COUNT_OR_REST = Rule(lambda x: _is_whole(x) and (x == -1 or 1 <= x <= _MOST), "-1 or a whole number of at least 1")
_WEIGHT, _RATE = _number(), _number()
_SHARE = _number(0, 1)

_OFFSET_INPUTS = ("relation", "time", "motion")
_DENSITY_TIMES = {"start": _COUNT_OR_0, "stop": _COUNT_OR_0, "every": _COUNT}
_GAUSSIANS = ("means", "quats", "log_scales", "opacity_logits", "sh")
# FLAME's regions and the demo head's.
_REGIONS = (
    "face neck scalp boundary right_eyeball left_eyeball right_ear left_ear forehead eye_region nose lips right_eye_region "
    "left_eye_region skin mouth_interior teeth tongue eye_left eye_right lashes"
).split()

# Of a stage that trains a network on windows of conversations.
_NETWORK = {
    "steps": _COUNT,
    "batch": _COUNT,
    "window": _whole(2),
    "learning_rate": _number(above=True),
    "warmup": _COUNT_OR_0,
    "weight_decay": _WEIGHT,
    "gradient_clip": _number(above=True),
}
# Radiance fields of a head.
_NERF = {
    "head_share": _number(0, 1, above=True, below=True),
    "lips_share": _number(0, 1, below=True),
    "crop": Rule(lambda x: _is_whole(x) and 32 <= x <= _MOST, "a whole number of at least 32, the least that LPIPS sees"),
    "levels": _COUNT,
    "coarsest": _whole(2),
    "finest": _whole(2),
    "features": _COUNT,
    "hidden": _COUNT,
    "attention_hidden": _COUNT,
    "step": _number(above=True),
    "lattice_points": _COUNT,
    "samples": _COUNT,
    "occupancy": _whole(1, 512),
    "occupancy_every": _COUNT,
    "torso_coarsest": _whole(2),
    "torso_finest": _whole(2),
    "learning_rate": _RATE,
    "plane_learning_rate": _RATE,
    "final_share": _number(0, 1, above=True),
    "lips_final_share": _number(0, 1, above=True),
}
# Of several baselines: how they adapt speech, and FaceFormer's decoder.
_SPEECH_ADAPTER = {"speech_layers": _COUNT, "speech_kernel": _odd(), "speech_hidden": _COUNT}
_PERIODIC = {"heads": _COUNT, "period": _COUNT, "reach": _COUNT, "dropout": _number(0, 1, below=True)}
# Of those that make motion of codes.
_CODES = {"features": _COUNT, "codebook": _whole(2), "code_layers": _COUNT_OR_0, "code_heads": _COUNT, "code_hidden": _COUNT}
# Attention heads of baselines, and the widths whose sum they divide.
_HEADS = (
    ("codetalker", "code_heads", ("features",)),
    ("codetalker", "heads", ("features",)),
    ("emotalk", "heads", ("content_features", "emotion_features", "style_features")),
    ("faceformer", "heads", ("features",)),
    ("l2l", "code_heads", ("features",)),
    ("l2l", "heads", ("codebook",)),
    ("l2l", "heads", ("speaker_features",)),
    ("selftalk", "heads", ("features",)),
    ("selftalk", "reader_heads", ("reader_features",)),
    ("timar", "heads", ("features",)),
)

# A rule for each key of configs/common.py; a section is a table of its own.
RULES: dict[str, Any] = {
    "seed": _COUNT_OR_0,
    "most_skipped": _COUNT_OR_0,
    "stages": Rule(
        lambda x: isinstance(x, (tuple, list)) and len(x) > 0 and list(x) == [name for name in STAGES if name in x],
        f"a tuple of some of {', '.join(map(repr, STAGES))}, in this order",
    ),
    "mesh": {
        "data": _COUNT_OR_REST,
        "fsdp": _COUNT_OR_REST,
        "cpu_devices": _whole(0, 1024),
        "rules": Rule(
            lambda x: _several(x, _is_sharding_rule, different=False),
            "a tuple of (pattern of paths, 'longest' or a tuple of 'data', 'fsdp' and None, each axis once)",
        ),
    },
    "data": {
        "embedded_root": _ANY_TEXT,
        "performances": _whole(1, 8),
        "conversations": _PATH,
        "layout": _one_of("dualtalk", "seamless"),
        "seamless": _ANY_TEXT,
        "subset": Rule(lambda x: _several(x, _is_group), "a tuple of different vendors, V00, and sessions, V00_S0809"),
        "count": _COUNT_OR_0,
        "relations": _PATH,
        "default_relation": _or_none(Rule(_is_relation, "a relation such as blood,equal, or unknown")),
        "capture": _PATH,
        "captures": _PATHS,
        "people": _PATH,
        "triplets": _PATH,
        "features": _PATH,
        "reader_threads": _whole(0, 1024),
    },
    "head": {"path": _PATH, "teeth": _FLAG, "masks": _or_none(_PATH), "basis": _or_none(_one_of(*BASES))},
    "speech": {
        "encoder": _one_of("logmel", "wav2vec2", "whisper"),
        "num_mels": _whole(1, 256),
        "hop": Rule(
            lambda x: _is_whole(x) and 1 <= x <= 320 and 320 % x == 0,
            "a divisor of 320, the samples between features: with another they would drift from the frames",
        ),
        "context": _whole(1, 64),
        "causal": _FLAG,
        "level": _FLAG,
        "checkpoint": _ANY_TEXT,
        "resample_first": _FLAG,
        "encode_missing": _FLAG,
        "augmentation": {
            "variants": _whole(0, 100),
            "seed": _COUNT_OR_0,
            "noises": _PATHS,
            "impulse_responses": _PATHS,
        },
    },
    "generator": {
        "architecture": _one_of("rsatalker", *BASELINES),
        "features": _COUNT,
        "heads": _COUNT,
        "reach": _COUNT,
        "encoder_layers": _COUNT_OR_0,
        "decoder_layers": _COUNT_OR_0,
        "mlp_ratio": _COUNT,
        "speech_hidden": _COUNT,
        "speech_layers": _COUNT,
        "speech_kernel": _odd(),
        "motion_kernel": _odd(),
        "motion_stride": _COUNT,
        "dropout": _number(0, 1, below=True),
        "use_partner": _FLAG,
        "use_own_speech": _FLAG,
        "residual": _FLAG,
        "query_time": _FLAG,
        "social_norm": _FLAG,
        "causal": _FLAG,
        "own_lookahead": Rule(lambda x: _is_whole(x) and -1 <= x <= _MOST, "-1 (all that can be reached), 0, or a number of frames"),
        "remat": _one_of("none", "dots", "full"),
        "dtype": _one_of("float32", "bfloat16"),
    },
    "social": {
        "enabled": _FLAG,
        "relation_features": Rule(
            lambda x: _is_whole(x) and 2 <= x <= _MOST, "at least 2: the two vectors of a relation are orthogonal"
        ),
        "hidden": _COUNT,
        "offsets_hidden": _COUNT,
        "offsets_inputs": Rule(
            lambda x: _several(x, _one_of(*_OFFSET_INPUTS).accepts) and len(x) > 0,
            f"a tuple of {', '.join(map(repr, _OFFSET_INPUTS))}, at least one",
        ),
    },
    "gaussians": {
        "sh_degree": _whole(0, 3),
        "init_scale": _number(above=True),
        "init_opacity": _number(0, 1, above=True, below=True),
        "num_gaussians": _or_none(_COUNT),
        "capacity": _or_none(_COUNT),
        "region_density": dict.fromkeys(_REGIONS, _WEIGHT),
        "color_frames": _COUNT_OR_0,
    },
    "render": {
        "implementation": _or_none(_one_of(*implementations.names())),
        "tile_size": _one_of(4, 8, 16, 32),
        "max_intersections": _or_none(_COUNT),
        "frames_at_once": _COUNT_OR_0,
        "background": Rule(
            lambda x: _several(x, _SHARE.accepts, different=False) and len(x) == 3,
            "three numbers in [0, 1]: red, green, blue",
        ),
    },
    # Of baselines; each has a section.
    "baselines": {
        "emotalk": _SPEECH_ADAPTER | _PERIODIC | {
            "content_features": _COUNT,
            "emotion_features": _COUNT,
            "style_features": _COUNT,
            "emotion_kernel": _odd(),
            "emotion_stride": _COUNT,
            "emotion_hidden": _COUNT,
            "velocity": _WEIGHT,
        },
        "codetalker": _SPEECH_ADAPTER | _PERIODIC | _CODES | {
            "tokens": _COUNT,
            "code_reach": _COUNT,
            "layers": _COUNT,
            "hidden": _COUNT,
            "own_share": _SHARE,
        },
        "dualtalk": _SPEECH_ADAPTER | {
            "features": _COUNT,
            "heads": _COUNT,
            "encoder_layers": _COUNT,
            "hidden": _COUNT,
            "motion_hidden": _COUNT,
            "dropout": _number(0, 1, below=True),
            "attention_dropout": _number(0, 1, below=True),
            "positions": _FLAG,
        },
        "faceformer": _SPEECH_ADAPTER | _PERIODIC | {"features": _COUNT, "normalised": _FLAG, "teacher_forcing": _FLAG},
        "l2l": _CODES | {
            "mels_per_frame": _COUNT,
            "speaker_features": _COUNT,
            "layers": _COUNT_OR_0,
            "past_layers": _COUNT_OR_0,
            "speaker_layers": _COUNT_OR_0,
            "heads": _COUNT,
            "hidden": _COUNT,
            "samples": _FLAG,
            "temperature": _number(above=True),
            "top_p": _number(0, 1, above=True),
        },
        "selftalk": _SPEECH_ADAPTER | {
            "features": _COUNT,
            "heads": _COUNT,
            "dropout": _number(0, 1, below=True),
            "reader_features": _COUNT,
            "reader_heads": _COUNT,
            "reader_hidden": _COUNT,
            "reader_layers": _COUNT,
            "velocity": _WEIGHT,
            "reading": _WEIGHT,
        },
        "facediffuser": _SPEECH_ADAPTER | {
            "features": _COUNT,
            "dropout": _number(0, 1, below=True),
            "speech_features": _COUNT,
            "sampling_steps": _whole(1, 1000),
            "distilled_steps": _COUNT_OR_0,
            "average": _number(0, 1, below=True),
        },
        "timar": _SPEECH_ADAPTER | {
            "features": _COUNT,
            "layers": _COUNT_OR_0,
            "heads": _COUNT,
            "mlp_ratio": _COUNT,
            "context": _COUNT,
            "joined": _FLAG,
            "dropout": _number(0, 1, below=True),
            "mask_low": _number(0, 1, above=True, below=True),
            "user_dropout": _SHARE,
            "head": _one_of("diffusion", "regression"),
            "head_features": _COUNT,
            "head_layers": _COUNT_OR_0,
            "draws": _COUNT,
            "learned_variance": _FLAG,
            "sampling_steps": _whole(2, 1000),
            "temperature": _number(),
            "feedback": _FLAG,
            "average": _number(0, 1, below=True),
        },
        "gaussiantalker": {
            "coarse_steps": _COUNT,
            "torso": _one_of("body", "head"),
            "planes": Rule(lambda x: _several(x, _whole(2).accepts) and len(x) > 0, "a tuple of different whole numbers of at least 2"),
            "channels": _COUNT,
            "hidden": _COUNT,
            "heads": _COUNT,
            "layers": _COUNT,
            "learning_rates": dict.fromkeys((*_GAUSSIANS, "planes", "network"), _RATE),
            "warmup": _COUNT_OR_0,
            "final_share": _number(0, 1, above=True),
            "max_size": _number(above=True),
            "loss": dict.fromkeys(("l1", "dssim", "lips", "mask", "size", "lpips"), _WEIGHT),
        },
        "ernerf": _NERF,
        "synctalk": _NERF,
    },
    "codes": _NETWORK,
    "motion": _NETWORK | {
        "accumulate": _COUNT,
        "orthogonality": _WEIGHT,
        "social_module": _FLAG,
        "tracker": {"share": _SHARE, "severity": _number(0, 3), "lag": _whole(0, 25)},
        "loss": {
            "expression": _WEIGHT,
            "jaw": _WEIGHT,
            "pose": _WEIGHT,
            "velocity": _WEIGHT,
            "relative": _FLAG,
            "lips": _WEIGHT,
            "closure": _WEIGHT,
            "plain_norm": _FLAG,
        },
    },
    "avatar": {
        "method": _one_of("gaussians", *METHODS),
        "steps": _COUNT,
        "batch": _COUNT,
        "scene_extent": _number(above=True),
        "learning_rates": dict.fromkeys(_GAUSSIANS, _RATE),
        "sh_rest_share": _WEIGHT,
        "steps_per_sh_degree": _COUNT_OR_0,
        "flame_learning_rates": dict.fromkeys(("expression", "rotation", "neck", "jaw", "eyes", "translation"), _RATE),
        "final_learning_rates": dict.fromkeys(_GAUSSIANS, _number(0, 1, above=True)),
        "dssim_weight": _SHARE,
        "lpips_weight": _WEIGHT,
        "position_weight": _WEIGHT,
        "position_threshold": _WEIGHT,
        "scale_weight": _WEIGHT,
        "scale_threshold": _WEIGHT,
    },
    "density": {
        "way": _one_of("none", "adaptive", "mcmc"),
        "adaptive": _DENSITY_TIMES | {
            "gradient_threshold": _WEIGHT,
            "absolute": _FLAG,
            "dense_size": _number(above=True),
            "split_shrink": _number(above=True),
            "min_opacity": _number(0, 1, below=True),
            "max_size": _WEIGHT,
            "max_radius": _WEIGHT,
            "reset_every": _COUNT_OR_0,
            "reset_opacity": _number(0, 1, above=True, below=True),
        },
        "mcmc": _DENSITY_TIMES | {
            "growth": _number(1),
            "min_opacity": _number(0, 1, below=True),
            "noise": _WEIGHT,
            "opacity_weight": _WEIGHT,
            "scale_weight": _WEIGHT,
        },
    },
    "joint": {
        "steps": _COUNT,
        "batch": _COUNT,
        "frames": _COUNT,
        "motion_batch": _COUNT_OR_0,
        "window": _whole(2),
        "generator_learning_rate": _RATE,
        "avatar_learning_rate": _RATE,
        "final_avatar_learning_rate": _number(0, 1, above=True),
        "avatar_warmup": _COUNT_OR_0,
        "offsets_learning_rate": _RATE,
        "image_weight": _WEIGHT,
        "lpips_weight": _WEIGHT,
        "avatar_share": _SHARE,
        "tracked_weight": _WEIGHT,
        "drawn_weight": _WEIGHT,
        "position_weight": _WEIGHT,
        "offset_weight": _WEIGHT,
        "offset_threshold": _WEIGHT,
    },
    "logging": dict.fromkeys(("log_every", "pictures_every", "checkpoint_every"), _COUNT)
    | {
        "evaluate_every": _COUNT_OR_0,
        "local_checkpoints": _ANY_TEXT,
        "local_every": _COUNT,
        "hang_seconds": _number(),
        "hang_ends": _FLAG,
        "slow_factor": Rule(lambda x: _is_number(x) and (x == 0 or x > 1), "0 or a number above 1"),
        "profile": Rule(
            lambda x: isinstance(x, (tuple, list)) and (len(x) == 0 or (len(x) == 2 and all(map(_COUNT.accepts, x)) and x[0] <= x[1])),
            "() or the first and the last of the steps, counted from 1",
        ),
    },
    "evaluation": {
        "frames": _whole(2),
        "lpips_nets": Rule(lambda x: _several(x, _one_of("alex", "vgg").accepts), "a tuple of 'alex' and 'vgg'"),
        "title": _TITLE,
        "samples": _COUNT,
        "compare": _PATH,
    },
}
# Sections that one may give a part of: the other members are as if the section were not there.
_PARTIAL = ("gaussians.region_density", "avatar.flame_learning_rates")


def check_values(config: ConfigDict | Mapping[str, Any], source: object = "config") -> None:
  """Looks whether a run can have the values of a config.

  Args:
    config: the whole config.
    source: what the error names: "config", or the file that it was read from.

  Raises:
    InputError: names the first key whose value no run can have, that is missing or that does not exist.
  """
  values = config.to_dict() if isinstance(config, ConfigDict) else config
  if not isinstance(values, Mapping):
    raise InputError(source, "", type(config).__name__, "a ConfigDict, as configs/common.py makes it")
  _check_section(values, RULES, source, "")
  _check_together(values, source)


def _check_section(values: Mapping[str, Any], rules: Mapping[str, Any], source: object, prefix: str) -> None:
  for key in values:
    if key not in rules:
      raise InputError(source, f"{prefix}{key}", repr(values[key]), f"no such key; there are {', '.join(rules)}")
  for key, rule in rules.items():
    name = f"{prefix}{key}"
    if key not in values:
      if prefix.removesuffix(".") in _PARTIAL:
        continue
      raise InputError(source, name, "nothing", "a section" if isinstance(rule, dict) else rule.expected)
    if isinstance(rule, dict):
      if not isinstance(values[key], Mapping):
        raise InputError(source, name, repr(values[key]), f"a section with {', '.join(rule)}")
      _check_section(values[key], rule, source, f"{name}.")
    elif not rule.accepts(values[key]):
      raise InputError(source, name, repr(values[key]), rule.expected)


def _check_together(values: Mapping[str, Any], source: object) -> None:
  """Values that depend on each other."""
  generator, gaussians, joint, motion = (values[name] for name in ("generator", "gaussians", "joint", "motion"))
  dualtalk = values["baselines"]["dualtalk"]
  # DualTalk's attention has half the width, and each direction of its LSTM a quarter.
  parts = math.lcm(2 * dualtalk["heads"], 4)
  num_gaussians = gaussians["num_gaussians"] or 0
  most_ahead = longest_lookahead(generator["reach"], generator["speech_layers"], generator["speech_kernel"])
  timar, diffuser, codetalker, l2l = (values["baselines"][name] for name in ("timar", "facediffuser", "codetalker", "l2l"))
  speech, augmentation = values["speech"], values["speech"]["augmentation"]
  windows = {1, speech["context"]} if speech["encoder"] == "logmel" else {1}
  divided = [(f"baselines.{name}.", values["baselines"][name], heads, widths) for name, heads, widths in _HEADS]
  avatar, talker = values["avatar"], values["baselines"]["gaussiantalker"]
  nerf = {name: values["baselines"][name] for name in ("ernerf", "synctalk")}
  wrong: Sequence[tuple[bool, str, Any, str]] = (
      (values["mesh"]["data"] == values["mesh"]["fsdp"] == -1, "mesh.fsdp", -1, "a number, where mesh.data is -1: one takes the rest"),
      (
          motion["batch"] % motion["accumulate"] != 0,
          "motion.accumulate",
          motion["accumulate"],
          f"a divisor of motion.batch, {motion['batch']}",
      ),
      (
          generator["features"] % generator["heads"] != 0,
          "generator.heads",
          f"{generator['heads']} with generator.features={generator['features']}",
          "a number of heads that divides the features",
      ),
      (
          dualtalk["features"] % parts != 0,
          "baselines.dualtalk.features",
          f"{dualtalk['features']} with baselines.dualtalk.heads={dualtalk['heads']}",
          f"a multiple of {parts}",
      ),
      (
          generator["causal"] and not BASELINES.get(generator["architecture"], MotionGenerator).causal_form,
          "generator.causal",
          f"True with {generator['architecture']!r}",
          "False: it looks ahead by design",
      ),
      (
          generator["own_lookahead"] > most_ahead,
          "generator.own_lookahead",
          generator["own_lookahead"],
          f"-1, or at most {most_ahead}: generator.reach and half of what the speech adapter sees",
      ),
      *(
          (generator["own_lookahead"] != 0 and is_wrong, "generator.own_lookahead", f"{generator['own_lookahead']} with {others}", "0")
          for is_wrong, others in (
              (generator["architecture"] != "rsatalker", f"generator.architecture={generator['architecture']!r}"),
              (not generator["causal"], "generator.causal=False, which sees all of both voices"),
              (not generator["use_own_speech"], "generator.use_own_speech=False"),
          )
      ),
      (
          not (generator["use_partner"] or generator["use_own_speech"]),
          "generator.use_own_speech",
          "False, with generator.use_partner=False",
          "one of the two: nothing would be heard or seen",
      ),
      (
          speech["causal"] and speech["encoder"] != "logmel",
          "speech.causal",
          f"True with speech.encoder={speech['encoder']!r}",
          "False: it hears the whole of a voice at once",
      ),
      (
          speech["encoder"] != "logmel" and not speech["checkpoint"].strip(),
          "speech.checkpoint",
          "nothing",
          f"a folder or an id on the Hugging Face hub, for speech.encoder={speech['encoder']!r}",
      ),
      (
          augmentation["variants"] == 0 and len(augmentation["noises"]) + len(augmentation["impulse_responses"]) > 0,
          "speech.augmentation.variants",
          "0, with recordings",
          "at least 1: nothing would use them",
      ),
      (
          0 < (gaussians["capacity"] or 0) < num_gaussians,
          "gaussians.capacity",
          gaussians["capacity"],
          f"None or at least gaussians.num_gaussians, {num_gaussians}",
      ),
      (
          avatar["method"] != "gaussians" and "joint" in values["stages"],
          "stages",
          values["stages"],
          f"none behind 'avatar': what {avatar['method']} has learnt cannot be trained with motion",
      ),
      (
          avatar["method"] != "gaussians" and len(values["data"]["captures"]) > 0,
          "data.captures",
          values["data"]["captures"],
          f"(), the person of data.capture alone: {avatar['method']} learns one",
      ),
      (
          avatar["method"] == "gaussiantalker" and talker["coarse_steps"] >= avatar["steps"],
          "baselines.gaussiantalker.coarse_steps",
          talker["coarse_steps"],
          f"below avatar.steps, {avatar['steps']}",
      ),
      *(
          (
              section["head_share"] + section["lips_share"] >= 1,
              f"baselines.{name}.lips_share",
              f"{section['lips_share']} with baselines.{name}.head_share={section['head_share']}",
              "together below 1: the torso is trained in the rest",
          )
          for name, section in nerf.items()
      ),
      (
          avatar["method"] == "gaussiantalker" and gaussians["num_gaussians"] is not None,
          "gaussians.num_gaussians",
          gaussians["num_gaussians"],
          "None: gaussiantalker begins with one on each of the head's triangles",
      ),
      (
          (talker["channels"] * len(talker["planes"])) % talker["heads"] != 0,
          "baselines.gaussiantalker.heads",
          talker["heads"],
          f"a divisor of {talker['channels'] * len(talker['planes'])}, the channels of all planes",
      ),
      (joint["frames"] > joint["window"], "joint.frames", joint["frames"], f"at most joint.window, {joint['window']}"),
      (
          joint["drawn_weight"] > 0 and joint["motion_batch"] < joint["batch"],
          "joint.motion_batch",
          joint["motion_batch"],
          f"at least joint.batch, {joint['batch']}: they are drawn",
      ),
      (
          generator["architecture"] == "timar" and motion["window"] > timar["context"] * FPS,
          "motion.window",
          motion["window"],
          f"at most the frames of baselines.timar.context={timar['context']} turns, {timar['context'] * FPS}",
      ),
      (
          codetalker["features"] % codetalker["tokens"] != 0,
          "baselines.codetalker.tokens",
          f"{codetalker['tokens']} with baselines.codetalker.features={codetalker['features']}",
          "a number that divides that",
      ),
      *(
          (
              generator["architecture"] == "l2l" and values[stage]["window"] < 32,
              f"{stage}.window",
              values[stage]["window"],
              "at least the 32 frames of four codes of L2L",
          )
          for stage in ("codes", "motion")
      ),
      (
          generator["architecture"] == "l2l" and l2l["mels_per_frame"] not in windows,
          "baselines.l2l.mels_per_frame",
          f"{l2l['mels_per_frame']} with speech.encoder={speech['encoder']!r} and speech.context={speech['context']}",
          " or ".join(map(str, sorted(windows))),
      ),
      (
          diffuser["distilled_steps"] > 0 and not _is_halved(diffuser["sampling_steps"], diffuser["distilled_steps"]),
          "baselines.facediffuser.distilled_steps",
          f"{diffuser['distilled_steps']} with baselines.facediffuser.sampling_steps={diffuser['sampling_steps']}",
          "0, or those halved once or more often",
      ),
      *(
          (
              sum(sizes[width] for width in widths) % sizes[heads] != 0,
              section + heads,
              f"{sizes[heads]} with {', '.join(f'{section}{width}={sizes[width]}' for width in widths)}",
              f"a number of heads that divides {'the sum of those' if len(widths) > 1 else 'that'}",
          )
          for section, sizes, heads, widths in divided
      ),
  )
  for is_wrong, key, found, expected in wrong:
    if is_wrong:
      raise InputError(source, key, found, expected)
