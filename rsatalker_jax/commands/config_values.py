"""What each value of a config may be. Every command looks before it does anything, so that a wrong one is one line."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from rsatalker_jax.baselines.image import METHODS
from rsatalker_jax.baselines.motion import BASELINES
from rsatalker_jax.commands.config_rules import (
    ANY_TEXT,
    COUNT,
    COUNT_OR_0,
    COUNT_OR_REST,
    FLAG,
    MOST,
    PATH,
    PATHS,
    RATE,
    SHARE,
    TITLE,
    WEIGHT,
    Rule,
    is_group,
    is_number,
    is_relation,
    is_sharding_rule,
    is_whole,
    number,
    odd,
    one_of,
    or_none,
    several,
    whole,
)
from rsatalker_jax.commands.config_together import check_together
from rsatalker_jax.errors import InputError
from rsatalker_jax.types import BASES, STAGES
from splat_kernels import implementations

_OFFSET_INPUTS = ("relation", "time", "motion")
_DENSITY_TIMES = {"start": COUNT_OR_0, "stop": COUNT_OR_0, "every": COUNT}
_GAUSSIANS = ("means", "quats", "log_scales", "opacity_logits", "sh")
# FLAME's regions and the demo head's.
_REGIONS = (
    "face neck scalp boundary right_eyeball left_eyeball right_ear left_ear forehead eye_region nose lips right_eye_region "
    "left_eye_region skin mouth_interior teeth tongue eye_left eye_right lashes"
).split()

# Of a stage that trains a network on windows of conversations.
_NETWORK = {
    "steps": COUNT,
    "batch": COUNT,
    "window": whole(2),
    "learning_rate": number(above=True),
    "warmup": COUNT_OR_0,
    "weight_decay": WEIGHT,
    "gradient_clip": number(above=True),
}
# Radiance fields of a head.
_NERF = {
    "head_share": number(0, 1, above=True, below=True),
    "lips_share": number(0, 1, below=True),
    "crop": Rule(lambda x: is_whole(x) and 32 <= x <= MOST, "a whole number of at least 32, the least that LPIPS sees"),
    "levels": COUNT,
    "coarsest": whole(2),
    "finest": whole(2),
    "features": COUNT,
    "hidden": COUNT,
    "attention_hidden": COUNT,
    "step": number(above=True),
    "lattice_points": COUNT,
    "samples": COUNT,
    "occupancy": whole(1, 512),
    "occupancy_every": COUNT,
    "torso_coarsest": whole(2),
    "torso_finest": whole(2),
    "learning_rate": RATE,
    "plane_learning_rate": RATE,
    "final_share": number(0, 1, above=True),
    "lips_final_share": number(0, 1, above=True),
}
# Of several baselines: how they adapt speech, and FaceFormer's decoder.
_SPEECH_ADAPTER = {"speech_layers": COUNT, "speech_kernel": odd(), "speech_hidden": COUNT}
_PERIODIC = {"heads": COUNT, "period": COUNT, "reach": COUNT, "dropout": number(0, 1, below=True)}
# Of those that make motion of codes.
_CODES = {"features": COUNT, "codebook": whole(2), "code_layers": COUNT_OR_0, "code_heads": COUNT, "code_hidden": COUNT}
# A rule for each key of configs/common.py; a section is a table of its own.
RULES: dict[str, Any] = {
    "seed": COUNT_OR_0,
    "most_skipped": COUNT_OR_0,
    "stages": Rule(
        lambda x: isinstance(x, (tuple, list)) and len(x) > 0 and list(x) == [name for name in STAGES if name in x],
        f"a tuple of some of {', '.join(map(repr, STAGES))}, in this order",
    ),
    "mesh": {
        "data": COUNT_OR_REST,
        "fsdp": COUNT_OR_REST,
        "cpu_devices": whole(0, 1024),
        "rules": Rule(
            lambda x: several(x, is_sharding_rule, different=False),
            "a tuple of (pattern of paths, 'longest' or a tuple of 'data', 'fsdp' and None, each axis once)",
        ),
    },
    "data": {
        "embedded_root": ANY_TEXT,
        "performances": whole(1, 8),
        "conversations": PATH,
        "layout": one_of("dualtalk", "seamless"),
        "seamless": ANY_TEXT,
        "subset": Rule(lambda x: several(x, is_group), "a tuple of different vendors, V00, and sessions, V00_S0809"),
        "count": COUNT_OR_0,
        "relations": PATH,
        "default_relation": or_none(Rule(is_relation, "a relation such as blood,equal, or unknown")),
        "capture": PATH,
        "captures": PATHS,
        "people": PATH,
        "triplets": PATH,
        "features": PATH,
        "reader_threads": whole(0, 1024),
    },
    "head": {"path": PATH, "teeth": FLAG, "masks": or_none(PATH), "basis": or_none(one_of(*BASES))},
    "speech": {
        "encoder": one_of("logmel", "wav2vec2", "whisper"),
        "num_mels": whole(1, 256),
        "hop": Rule(
            lambda x: is_whole(x) and 1 <= x <= 320 and 320 % x == 0,
            "a divisor of 320, the samples between features: with another they would drift from the frames",
        ),
        "context": whole(1, 64),
        "causal": FLAG,
        "level": FLAG,
        "checkpoint": ANY_TEXT,
        "resample_first": FLAG,
        "encode_missing": FLAG,
        "augmentation": {
            "variants": whole(0, 100),
            "seed": COUNT_OR_0,
            "noises": PATHS,
            "impulse_responses": PATHS,
        },
    },
    "generator": {
        "architecture": one_of("rsatalker", *BASELINES),
        "features": COUNT,
        "heads": COUNT,
        "reach": COUNT,
        "encoder_layers": COUNT_OR_0,
        "decoder_layers": COUNT_OR_0,
        "mlp_ratio": COUNT,
        "speech_hidden": COUNT,
        "speech_layers": COUNT,
        "speech_kernel": odd(),
        "motion_kernel": odd(),
        "motion_stride": COUNT,
        "dropout": number(0, 1, below=True),
        "use_partner": FLAG,
        "use_own_speech": FLAG,
        "residual": FLAG,
        "query_time": FLAG,
        "social_norm": FLAG,
        "causal": FLAG,
        "own_lookahead": Rule(lambda x: is_whole(x) and -1 <= x <= MOST, "-1 (all that can be reached), 0, or a number of frames"),
        "remat": one_of("none", "dots", "full"),
        "dtype": one_of("float32", "bfloat16"),
    },
    "social": {
        "enabled": FLAG,
        "relation_features": Rule(
            lambda x: is_whole(x) and 2 <= x <= MOST, "at least 2: the two vectors of a relation are orthogonal"
        ),
        "hidden": COUNT,
        "offsets_hidden": COUNT,
        "offsets_inputs": Rule(
            lambda x: several(x, one_of(*_OFFSET_INPUTS).accepts) and len(x) > 0,
            f"a tuple of {', '.join(map(repr, _OFFSET_INPUTS))}, at least one",
        ),
    },
    "gaussians": {
        "sh_degree": whole(0, 3),
        "init_scale": number(above=True),
        "init_opacity": number(0, 1, above=True, below=True),
        "num_gaussians": or_none(COUNT),
        "capacity": or_none(COUNT),
        "region_density": dict.fromkeys(_REGIONS, WEIGHT),
        "color_frames": COUNT_OR_0,
    },
    "render": {
        "implementation": or_none(one_of(*implementations.names())),
        "tile_size": one_of(4, 8, 16, 32),
        "max_intersections": or_none(COUNT),
        "frames_at_once": COUNT_OR_0,
        "background": Rule(
            lambda x: several(x, SHARE.accepts, different=False) and len(x) == 3,
            "three numbers in [0, 1]: red, green, blue",
        ),
    },
    # Of baselines; each has a section.
    "baselines": {
        "emotalk": _SPEECH_ADAPTER | _PERIODIC | {
            "content_features": COUNT,
            "emotion_features": COUNT,
            "style_features": COUNT,
            "emotion_kernel": odd(),
            "emotion_stride": COUNT,
            "emotion_hidden": COUNT,
            "velocity": WEIGHT,
        },
        "codetalker": _SPEECH_ADAPTER | _PERIODIC | _CODES | {
            "tokens": COUNT,
            "code_reach": COUNT,
            "layers": COUNT,
            "hidden": COUNT,
            "own_share": SHARE,
        },
        "dualtalk": _SPEECH_ADAPTER | {
            "features": COUNT,
            "heads": COUNT,
            "encoder_layers": COUNT,
            "hidden": COUNT,
            "motion_hidden": COUNT,
            "dropout": number(0, 1, below=True),
            "attention_dropout": number(0, 1, below=True),
            "positions": FLAG,
        },
        "faceformer": _SPEECH_ADAPTER | _PERIODIC | {"features": COUNT, "normalised": FLAG, "teacher_forcing": FLAG},
        "l2l": _CODES | {
            "mels_per_frame": COUNT,
            "speaker_features": COUNT,
            "layers": COUNT_OR_0,
            "past_layers": COUNT_OR_0,
            "speaker_layers": COUNT_OR_0,
            "heads": COUNT,
            "hidden": COUNT,
            "samples": FLAG,
            "temperature": number(above=True),
            "top_p": number(0, 1, above=True),
        },
        "selftalk": _SPEECH_ADAPTER | {
            "features": COUNT,
            "heads": COUNT,
            "dropout": number(0, 1, below=True),
            "reader_features": COUNT,
            "reader_heads": COUNT,
            "reader_hidden": COUNT,
            "reader_layers": COUNT,
            "velocity": WEIGHT,
            "reading": WEIGHT,
        },
        "facediffuser": _SPEECH_ADAPTER | {
            "features": COUNT,
            "dropout": number(0, 1, below=True),
            "speech_features": COUNT,
            "sampling_steps": whole(1, 1000),
            "distilled_steps": COUNT_OR_0,
            "average": number(0, 1, below=True),
        },
        "timar": _SPEECH_ADAPTER | {
            "features": COUNT,
            "layers": COUNT_OR_0,
            "heads": COUNT,
            "mlp_ratio": COUNT,
            "context": COUNT,
            "joined": FLAG,
            "dropout": number(0, 1, below=True),
            "mask_low": number(0, 1, above=True, below=True),
            "user_dropout": SHARE,
            "head": one_of("diffusion", "regression"),
            "head_features": COUNT,
            "head_layers": COUNT_OR_0,
            "draws": COUNT,
            "learned_variance": FLAG,
            "sampling_steps": whole(2, 1000),
            "temperature": number(),
            "feedback": FLAG,
            "average": number(0, 1, below=True),
        },
        "gaussiantalker": {
            "coarse_steps": COUNT,
            "torso": one_of("body", "head"),
            "planes": Rule(lambda x: several(x, whole(2).accepts) and len(x) > 0, "a tuple of different whole numbers of at least 2"),
            "channels": COUNT,
            "hidden": COUNT,
            "heads": COUNT,
            "layers": COUNT,
            "learning_rates": dict.fromkeys((*_GAUSSIANS, "planes", "network"), RATE),
            "warmup": COUNT_OR_0,
            "final_share": number(0, 1, above=True),
            "max_size": number(above=True),
            "loss": dict.fromkeys(("l1", "dssim", "lips", "mask", "size", "lpips"), WEIGHT),
        },
        "ernerf": _NERF,
        "synctalk": _NERF,
    },
    "codes": _NETWORK,
    "motion": _NETWORK | {
        "accumulate": COUNT,
        "orthogonality": WEIGHT,
        "social_module": FLAG,
        "tracker": {"share": SHARE, "severity": number(0, 3), "lag": whole(0, 25)},
        "loss": {
            "expression": WEIGHT,
            "jaw": WEIGHT,
            "pose": WEIGHT,
            "velocity": WEIGHT,
            "relative": FLAG,
            "lips": WEIGHT,
            "closure": WEIGHT,
            "plain_norm": FLAG,
        },
    },
    "avatar": {
        "method": one_of("gaussians", *METHODS),
        "steps": COUNT,
        "batch": COUNT,
        "scene_extent": number(above=True),
        "learning_rates": dict.fromkeys(_GAUSSIANS, RATE),
        "sh_rest_share": WEIGHT,
        "steps_per_sh_degree": COUNT_OR_0,
        "flame_learning_rates": dict.fromkeys(("expression", "rotation", "neck", "jaw", "eyes", "translation"), RATE),
        "final_learning_rates": dict.fromkeys(_GAUSSIANS, number(0, 1, above=True)),
        "dssim_weight": SHARE,
        "lpips_weight": WEIGHT,
        "position_weight": WEIGHT,
        "position_threshold": WEIGHT,
        "scale_weight": WEIGHT,
        "scale_threshold": WEIGHT,
    },
    "density": {
        "way": one_of("none", "adaptive", "mcmc"),
        "adaptive": _DENSITY_TIMES | {
            "gradient_threshold": WEIGHT,
            "absolute": FLAG,
            "dense_size": number(above=True),
            "split_shrink": number(above=True),
            "min_opacity": number(0, 1, below=True),
            "max_size": WEIGHT,
            "max_radius": WEIGHT,
            "reset_every": COUNT_OR_0,
            "reset_opacity": number(0, 1, above=True, below=True),
        },
        "mcmc": _DENSITY_TIMES | {
            "growth": number(1),
            "min_opacity": number(0, 1, below=True),
            "noise": WEIGHT,
            "opacity_weight": WEIGHT,
            "scale_weight": WEIGHT,
        },
    },
    "joint": {
        "steps": COUNT,
        "batch": COUNT,
        "frames": COUNT,
        "motion_batch": COUNT_OR_0,
        "window": whole(2),
        "generator_learning_rate": RATE,
        "avatar_learning_rate": RATE,
        "final_avatar_learning_rate": number(0, 1, above=True),
        "avatar_warmup": COUNT_OR_0,
        "offsets_learning_rate": RATE,
        "image_weight": WEIGHT,
        "lpips_weight": WEIGHT,
        "avatar_share": SHARE,
        "tracked_weight": WEIGHT,
        "drawn_weight": WEIGHT,
        "position_weight": WEIGHT,
        "offset_weight": WEIGHT,
        "offset_threshold": WEIGHT,
    },
    "logging": dict.fromkeys(("log_every", "pictures_every", "checkpoint_every"), COUNT)
    | {
        "evaluate_every": COUNT_OR_0,
        "local_checkpoints": ANY_TEXT,
        "local_every": COUNT,
        "hang_seconds": number(),
        "hang_ends": FLAG,
        "slow_factor": Rule(lambda x: is_number(x) and (x == 0 or x > 1), "0 or a number above 1"),
        "profile": Rule(
            lambda x: isinstance(x, (tuple, list)) and (len(x) == 0 or (len(x) == 2 and all(map(COUNT.accepts, x)) and x[0] <= x[1])),
            "() or the first and the last of the steps, counted from 1",
        ),
    },
    "evaluation": {
        "frames": whole(2),
        "lpips_nets": Rule(lambda x: several(x, one_of("alex", "vgg").accepts), "a tuple of 'alex' and 'vgg'"),
        "title": TITLE,
        "samples": COUNT,
        "compare": PATH,
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
  check_together(values, source)


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
