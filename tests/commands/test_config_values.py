"""Values of a config: each can be set by a flag, with its type; what no run can have is one line; each is read somewhere."""

import ast
import dataclasses
import inspect
import math
import pathlib

import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

import splat_kernels.implementations
from configs import demo, rsatalker
from configs.ablations import VARIANTS
from configs.common import base_config
from rsatalker_jax.avatar import init_avatar
from rsatalker_jax.baselines.motion import BASELINES
from rsatalker_jax.commands import command_line
from rsatalker_jax.commands.config_values import RULES, check_values
from rsatalker_jax.data.demo.capture import CAPTURED_PERFORMANCE
from rsatalker_jax.data.sound import make_degradations
from rsatalker_jax.data.webcam import Webcam
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import load_head
from rsatalker_jax.head.regions import FLAME_REGIONS
from rsatalker_jax.motion import MotionConfig
from rsatalker_jax.social.networks import OFFSET_INPUTS
from rsatalker_jax.training.losses import MotionLossWeights
from rsatalker_jax.training.loop import Watching
from rsatalker_jax.types import STAGES

ROOT = pathlib.Path(__file__).parents[2]


def leaves(config, prefix=""):
  for key, value in config.items():
    if isinstance(value, (dict, ConfigDict)):
      yield from leaves(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", value


def parse(*overrides, config="configs/demo.py"):
  """The --config flag of a command line."""
  words = ["train.py", f"--config={ROOT / config}", *(f"--config.{word}" for word in overrides)]
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=words)
  values(words)
  return values["config"]


def read(*overrides, config="configs/demo.py"):
  """The config as a command reads it from its flags."""
  return command_line.read_config(parse(*overrides, config=config))


def get(config, key):
  return config.to_dict()[key] if "." not in key else get(config[key.split(".")[0]], key.partition(".")[2])


def another(key, value):
  """A value that differs from the default, and the words for it."""
  special = {
      "data.default_relation": "blood,unknown",
      "data.captures": ("a", "b"),
      "data.layout": "seamless",
      "data.subset": ("V00", "V01_S0223"),
      "speech.encoder": "wav2vec2",
      "speech.hop": 80,
      "speech.checkpoint": "folder",
      "speech.augmentation.noises": ("street.wav", "fan.wav"),
      "speech.augmentation.impulse_responses": ("hall.wav",),
      "generator.architecture": "dualtalk",
      "generator.dtype": "bfloat16",
      "generator.heads": 2,
      "baselines.dualtalk.features": 64,
      "baselines.dualtalk.heads": 2,
      "baselines.codetalker.heads": 2,
      "baselines.codetalker.code_heads": 2,
      "baselines.codetalker.tokens": 2,
      "baselines.l2l.heads": 5,
      "baselines.l2l.code_heads": 2,
      "baselines.l2l.mels_per_frame": 1,
      "baselines.emotalk.heads": 2,
      "baselines.faceformer.heads": 2,
      "baselines.gaussiantalker.planes": (16, 32),
      "baselines.selftalk.heads": 2,
      "baselines.selftalk.reader_heads": 2,
      "baselines.timar.heads": 2,
      "baselines.timar.head": "regression",
      "density.mcmc.growth": 1.2,
      "gaussians.sh_degree": 2,
      "gaussians.num_gaussians": 12_000,
      "render.implementation": "xla",
      "render.tile_size": 8,
      "render.max_intersections": 100_000,
      "render.background": (0.0, 0.5, 1.0),
      "density.way": "mcmc",
      "evaluation.lpips_nets": ("alex", "vgg"),
      "head.masks": "masks.pkl",
      "head.basis": "flame2020",
      "mesh.data": 2,
      "mesh.rules": (("kernel", (None, "fsdp")), ("", "longest")),
      "generator.remat": "dots",
      "stages": ("avatar", "joint"),
      "logging.profile": (3, 5),
      "social.offsets_inputs": ("relation", "time", "motion"),
  }
  if key in special:
    return special[key]
  if isinstance(value, bool):
    return not value
  if isinstance(value, int):
    return value + 2
  if isinstance(value, float):
    return value / 2 if value else 0.25
  return value + "x"


def test_every_value_can_be_set_by_a_flag():
  defaults = dict(leaves(base_config().to_dict()))
  wanted = {key: another(key, default) for key, default in defaults.items()}
  config = parse(*(f"{key}={value}" for key, value in wanted.items())).value
  for key, value in wanted.items():
    found = get(config, key)
    assert value != defaults[key] and found == value and type(found) is type(value), key


@pytest.mark.parametrize("config", ["configs/demo.py", "configs/rsatalker.py", "configs/pod.py", "configs/demo.py:fixed"])
def test_none_can_be_given_where_it_means_something(config):
  keys = ["data.default_relation", "head.masks", "gaussians.num_gaussians", "gaussians.capacity"]
  keys += ["render.implementation", "render.max_intersections"]
  found = read(*(f"{key}=None" for key in keys), config=config)
  assert [get(found, key) for key in keys] == [None] * len(keys)


@pytest.mark.parametrize("config", ["configs/demo.py:fixed", "configs/rsatalker.py:fixed", "configs/demo.py"])
def test_what_a_variant_sets_to_none_keeps_its_type(config):
  assert read("gaussians.capacity=30_000", config=config).gaussians.capacity == 30_000


@pytest.mark.parametrize("word, value", [("1e3", 1000), ("1_000", 1000), ("1000", 1000), ("1000.0", 1000)])
def test_whole_numbers_in_every_form(word, value):
  found = read(f"motion.steps={word}").motion.steps
  assert found == value and type(found) is int


@pytest.mark.parametrize("word", ["1.5", "red", "nan", "inf", "1e400"])
def test_what_is_no_whole_number_is_refused(word):
  with pytest.raises((flags.Error, InputError), match=r"motion.steps"):
    read(f"motion.steps={word}")


@pytest.mark.parametrize("config", [base_config(), demo.get_config(), rsatalker.get_config()])
def test_there_is_a_rule_for_each_key_and_no_other(config):
  keys = lambda tree: {key for key, _ in leaves(tree)}
  assert keys(RULES) == keys(config.to_dict())


@pytest.mark.parametrize("module", [demo, rsatalker])
@pytest.mark.parametrize("variant", ["", *VARIANTS])
def test_our_own_configs_pass(module, variant):
  check_values(module.get_config(variant))


@pytest.mark.parametrize("config", [rsatalker.get_config(), demo.get_config("paper")])
def test_the_paper_is_eq_13_as_it_is_printed(config):
  joint = config.joint
  assert (joint.image_weight, joint.position_weight, joint.offset_weight) == (0.5, 0.01, 0.01)
  assert (joint.tracked_weight, joint.drawn_weight, joint.motion_batch, config.motion.orthogonality) == (0, 0, 0, 0)
  assert joint.avatar_share == 1.0 and joint.offsets_learning_rate == joint.generator_learning_rate > 1e-6
  assert not config.motion.social_module and config.motion.loss.plain_norm
  assert (config.avatar.dssim_weight, config.avatar.lpips_weight, config.avatar.scale_weight) == (0.2, 0.0, 0.0)
  assert joint.lpips_weight == 0.0
  assert config.avatar.position_threshold == joint.offset_threshold == 1.0
  assert config.stages == ("motion", "avatar", "joint") and config.social.offsets_inputs == ("relation", "time")


def test_variants_can_be_joined():
  config = rsatalker.get_config("ours+no_relation")
  assert config.generator.residual and not config.social.enabled
  assert config.evaluation.title == "RSATalker, this project's form, RSATalker without the social module"
  assert demo.get_config("paper+ours").motion.loss.plain_norm is False
  with pytest.raises(ValueError, match="found 'our' behind the colon, expected full, paper"):
    rsatalker.get_config("paper+our")


def test_either_axis_of_the_mesh_may_take_the_rest():
  for data, fsdp in ((-1, 2), (2, -1)):
    read(f"mesh.data={data}", f"mesh.fsdp={fsdp}")
  check_values(base_config().to_dict() | {"mesh": dict(data=1, fsdp=1, cpu_devices=0, rules=[["", ["data", None, "fsdp"]], ["x", []]])})


def test_a_section_may_be_given_whole_and_in_part_where_the_rest_is_none():
  config = read("gaussians.region_density={'scalp': 2.0}", "avatar.flame_learning_rates={}")
  assert config.gaussians.region_density.to_dict() == {"scalp": 2.0}


WRONG = {
    "seed": [-1, 2**31, 1.5, None, True],
    "mesh.data": [0, -2, 1.0],
    "mesh.fsdp": [0, -1, 1.5],
    "mesh.cpu_devices": [-1, 10**6],
    "mesh.rules": [
        "longest", None, (("", "shortest"),), (("(", "longest"),), (("", ("model",)),), (("", "data"),), (("", ("data", "data")),),
        (("", "longest", 1),), ("longest",), ((None, "longest"),), (("", (("data", "fsdp"),)),),
    ],
    "data.embedded_root": [None, 3],
    "data.performances": [0, CAPTURED_PERFORMANCE],
    "data.default_relation": ["cousins", 3, "blood", ""],
    "data.layout": ["unils", None],
    "data.seamless": [None, 3],
    "data.subset": ["V00", ("V00", "V00"), ("S0223",), (3,), (None,)],
    "data.count": [-1, 1.5, None],
    "data.captures": ["abc", ("a", "a"), ("",), (None,), (3,)],
    "data.reader_threads": [-1, 1.5],
    "head.path": ["", " ", None],
    "head.teeth": [1, None, "yes"],
    "speech.encoder": ["wav2vec", None],
    "speech.num_mels": [0, 1000],
    "speech.hop": [0, 150, 640, -160],
    "speech.context": [0],
    "speech.augmentation.variants": [-1, 101, 1.5, None],
    "speech.augmentation.seed": [-1],
    "speech.augmentation.noises": ["a.wav", ("a", "a"), ("",), (3,)],
    "speech.augmentation.impulse_responses": ["a.wav", (None,)],
    "generator.architecture": ["rsatalkr", None],
    "generator.heads": [0, 3],
    "generator.features": [0, 130],
    "generator.reach": [0],
    "generator.encoder_layers": [-1],
    "generator.speech_kernel": [0, 2],
    "generator.motion_kernel": [0, 4, 26],
    "generator.motion_stride": [0],
    "generator.dropout": [1.0, -0.1, math.nan],
    "generator.remat": ["some", None, True],
    "generator.dtype": ["float23", "float16"],
    "generator.use_own_speech": [0],
    "generator.own_lookahead": [-2, 1, -1, 28, 1.0, None, True],  # Of a generator that is not causal, any but 0.
    "baselines.codetalker.features": [0, 130],
    "baselines.codetalker.tokens": [0, 3],
    "baselines.codetalker.codebook": [1],
    "baselines.codetalker.code_heads": [0, 3],
    "baselines.codetalker.heads": [0, 3],
    "baselines.codetalker.code_reach": [0],
    "baselines.codetalker.period": [0],
    "baselines.codetalker.dropout": [1.0],
    "baselines.codetalker.own_share": [-0.1, 1.1],
    "baselines.codetalker.speech_kernel": [2],
    "baselines.l2l.mels_per_frame": [0],
    "baselines.l2l.codebook": [1, 201],
    "baselines.l2l.code_heads": [0, 3],
    "baselines.l2l.heads": [0, 3],
    "baselines.l2l.speaker_features": [0, 401],
    "baselines.l2l.samples": [1, None],
    "baselines.l2l.temperature": [0, -1, math.nan],
    "baselines.l2l.top_p": [0, 1.1],
    "baselines.emotalk.content_features": [0, 129],
    "baselines.emotalk.emotion_kernel": [0, 4],
    "baselines.emotalk.velocity": [-1],
    "baselines.dualtalk.features": [0, 130],
    "baselines.dualtalk.heads": [0, 3],
    "baselines.dualtalk.encoder_layers": [0],
    "baselines.dualtalk.hidden": [0],
    "baselines.dualtalk.motion_hidden": [0],
    "baselines.dualtalk.dropout": [1.0],
    "baselines.dualtalk.attention_dropout": [-0.1, 1.0],
    "baselines.dualtalk.speech_kernel": [2],
    "baselines.ernerf.coarsest": [1],
    "baselines.ernerf.crop": [31, 48.0],
    "baselines.ernerf.final_share": [0, 1.1],
    "baselines.ernerf.head_share": [0, 1, 0.8],
    "baselines.ernerf.lips_share": [-0.1, 0.4, 1],
    "baselines.ernerf.occupancy": [0, 1000],
    "baselines.ernerf.step": [0, None],
    "baselines.faceformer.heads": [0, 3],
    "baselines.faceformer.features": [0, 130],
    "baselines.faceformer.period": [0, 2.5],
    "baselines.faceformer.reach": [0],
    "baselines.faceformer.dropout": [1.0],
    "baselines.faceformer.speech_kernel": [2],
    "baselines.faceformer.normalised": [1, None],
    "baselines.facediffuser.sampling_steps": [0, 1001],
    "baselines.facediffuser.distilled_steps": [-1, 3, 16, 32],  # Of 16.
    "baselines.facediffuser.average": [1.0, -0.1],
    "baselines.synctalk.lips_share": [0.5],
    "baselines.synctalk.plane_learning_rate": [-1],
    "baselines.selftalk.heads": [3],
    "baselines.selftalk.reader_heads": [3],
    "baselines.selftalk.reader_layers": [0],
    "baselines.selftalk.reading": [-0.1],
    "baselines.timar.heads": [0, 3],
    "baselines.timar.mask_low": [0, 1, 1.5],
    "baselines.timar.user_dropout": [-0.1, 1.1],
    "baselines.timar.head": ["mlp", None],
    "baselines.timar.sampling_steps": [1, 1001],
    "baselines.timar.temperature": [-1, math.nan],
    "baselines.timar.feedback": [0],
    "social.relation_features": [0, 1],
    "gaussians.sh_degree": [-1, 4, 1.0],
    "gaussians.init_scale": [0, -1, math.inf],
    "gaussians.init_opacity": [0, 1, 2.0],
    "gaussians.num_gaussians": [0, -5],
    "gaussians.capacity": [0, -5, 1.5],
    "gaussians.region_density.scalp": [-1, None, math.nan],
    "gaussians.color_frames": [-1],
    "render.implementation": ["cuda", ""],
    "render.tile_size": [10, 0, 64, 16.0],
    "render.max_intersections": [0],
    "render.frames_at_once": [-1, None],
    "render.background": [(255, 255, 255), (1, 1), (1, 1, 1, 1), "white", (1, 1, None), (0, 0, math.nan), (-0.1, 0, 0)],
    "motion.steps": [0, -5, 2**31, 1.5, None],
    "motion.batch": [0],
    "motion.accumulate": [0, -1, 3, 8],  # The batch is 4.
    "motion.window": [0, 1],
    "motion.learning_rate": [0, -1, math.nan, math.inf, None, "fast"],
    "motion.warmup": [-1],
    "motion.gradient_clip": [0, -1],
    "motion.weight_decay": [-0.01],
    "motion.tracker.share": [-0.1, 1.1, None],
    "motion.tracker.severity": [-1, 4, math.nan],
    "motion.tracker.lag": [-1, 26, 1.5],
    "motion.loss.jaw": [-1, math.nan],
    "motion.loss.relative": [1],
    "avatar.batch": [0],
    "avatar.scene_extent": [0],
    "avatar.learning_rates.means": [-1e-3],
    "avatar.flame_learning_rates.jaw": [-1e-3, None],
    "avatar.final_learning_rates.sh": [0, 1.1],
    "avatar.dssim_weight": [-0.1, 1.1],
    "density.way": ["adaptve", None],
    "density.adaptive.every": [0],
    "density.adaptive.min_opacity": [1.0, -0.1],
    "density.adaptive.reset_opacity": [0, 1],
    "density.mcmc.growth": [0.5],
    "joint.frames": [0, 101],
    "joint.window": [1],
    "joint.avatar_share": [-0.1, 1.1],
    "logging.log_every": [0],
    "logging.checkpoint_every": [0],
    "logging.pictures_every": [0],
    "logging.hang_seconds": [-1, None, math.inf],
    "logging.hang_ends": [0, None],
    "logging.slow_factor": [1, 0.5, -1, math.nan],
    "logging.profile": [(3,), (0, 2), (5, 4), (1, 2, 3), "12", None, (1, 2.5)],
    "most_skipped": [-1, 1.5, None],
    "evaluation.frames": [0, 1],
    "stages": [(), ("joint", "motion"), ("motion", "motion"), "motion", ("motion", "final"), None],
    "social.offsets_inputs": [(), ("motion", "motion"), ("pose",), "motion", None, (["motion"],)],
    "evaluation.lpips_nets": [("squeeze",), "alex", ("alex", "alex"), (["alex"],)],
    "evaluation.title": ["", "a | b", "a\nb"],
}


@pytest.mark.parametrize("key, value", [(key, value) for key, values in WRONG.items() for value in values])
def test_values_that_no_run_can_have_are_one_line_that_names_them(key, value):
  values = base_config().to_dict()
  section = values
  *path, name = key.split(".")
  for part in path:
    section = section[part]
  if name not in section:
    pytest.skip("no such key now")
  section[name] = value
  with pytest.raises(InputError) as error:
    check_values(values, "run/config.json")
  assert (error.value.file, "\n" in str(error.value)) == ("run/config.json", False)
  # Of values that do not go together, either may be named; both are.
  assert key in f"{error.value.key} {error.value.found} {error.value.expected}" and str(value).split("\n")[0] in str(error.value)


@pytest.mark.parametrize(
    "overrides, named",
    [
        ({"generator.features": 130}, "generator.heads"),
        ({"baselines.dualtalk.features": 132}, "baselines.dualtalk.features"),
        ({"generator.architecture": "dualtalk", "generator.causal": True}, "generator.causal"),
        ({"generator.architecture": "selftalk", "generator.causal": True}, "generator.causal"),
        ({"generator.architecture": "faceformer", "generator.causal": True, "generator.own_lookahead": 3}, "generator.own_lookahead"),
        ({"generator.causal": True, "generator.use_own_speech": False, "generator.own_lookahead": 3}, "generator.own_lookahead"),
        ({"generator.causal": True, "generator.own_lookahead": 28}, "generator.own_lookahead"),
        ({"generator.architecture": "timar", "motion.window": 101}, "motion.window"),
        ({"baselines.emotalk.style_features": 17}, "baselines.emotalk.heads"),
        ({"baselines.codetalker.tokens": 3}, "baselines.codetalker.tokens"),
        ({"generator.architecture": "l2l", "motion.window": 31}, "motion.window"),
        ({"generator.architecture": "l2l", "codes.window": 31}, "codes.window"),
        ({"generator.architecture": "l2l", "speech.context": 2}, "baselines.l2l.mels_per_frame"),
        (
            {"generator.architecture": "l2l", "speech.encoder": "wav2vec2", "speech.checkpoint": "folder"},
            "baselines.l2l.mels_per_frame",
        ),
        ({"generator.use_partner": False, "generator.use_own_speech": False}, "generator.use_own_speech"),
        ({"speech.encoder": "wav2vec2", "speech.checkpoint": " "}, "speech.checkpoint"),
        ({"speech.encoder": "whisper", "speech.checkpoint": ""}, "speech.checkpoint"),
        ({"speech.encoder": "whisper", "speech.checkpoint": "folder", "speech.causal": True}, "speech.causal"),
        ({"speech.augmentation.noises": ("a.wav",)}, "speech.augmentation.variants"),
        ({"gaussians.num_gaussians": 30_000}, "gaussians.capacity"),
        ({"joint.motion_batch": 1}, "joint.motion_batch"),
        ({"mesh.data": -1, "mesh.fsdp": -1}, "mesh.fsdp"),
        ({"motion.batch": 6, "motion.accumulate": 4}, "motion.accumulate"),
    ],
)
def test_values_that_do_not_go_together(overrides, named):
  config = base_config()
  config.update_from_flattened_dict(overrides)
  with pytest.raises(InputError) as error:
    check_values(config)
  assert error.value.key == named


@pytest.mark.parametrize("ahead", [-1, 0, 1, 27])
def test_a_causal_generator_may_hear_its_own_voice_as_far_ahead_as_it_reaches(ahead):
  config = base_config()
  config.update_from_flattened_dict({"generator.causal": True, "generator.own_lookahead": ahead})
  check_values(config)
  assert MotionConfig(**config.generator).frames_ahead == (27 if ahead == -1 else ahead)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda v: v["motion"].pop("steps"), "motion.steps: found nothing, expected a whole number"),
        (lambda v: v.pop("motion"), "motion: found nothing, expected a section"),
        (lambda v: v.update(motion=3), "motion: found 3, expected a section with steps, batch"),
        (lambda v: v["motion"].update(stepz=3), "motion.stepz: found 3, expected no such key; there are steps, batch"),
        (lambda v: v["gaussians"]["region_density"].update(hair=2.0), "gaussians.region_density.hair: found 2.0"),
    ],
)
def test_keys_that_are_missing_or_too_many(change, message):
  values = base_config().to_dict()
  change(values)
  with pytest.raises(InputError, match=message.replace(".", r"\.")):
    check_values(values)


def test_what_is_no_config_is_one_line():
  with pytest.raises(InputError, match="config: found NoneType, expected a ConfigDict"):
    check_values(None)


def test_names_in_the_rules_are_those_of_the_code():
  names = lambda key: {value for value in VALUES if accepts(key, value)}
  VALUES = {*splat_kernels.implementations.names(), "cuda", "gsplat"}
  accepts = lambda key, value: RULES[key.split(".")[0]][key.split(".")[1]].accepts(value)
  assert names("render.implementation") == set(splat_kernels.implementations.names())
  assert names("social.offsets_inputs") == set() and accepts("social.offsets_inputs", OFFSET_INPUTS)
  assert RULES["stages"].accepts(STAGES)
  sizes = set()
  for size in range(70):
    try:
      sizes.add(splat_kernels.Config(tile_size=size).tile_size)
    except ValueError:
      pass
  assert {size for size in range(70) if accepts("render.tile_size", size)} == sizes
  assert {n for n in range(20) if accepts("data.performances", n)} == set(range(1, CAPTURED_PERFORMANCE))
  demo_head = load_head(ROOT / "assets/head/demo_head.npz")
  assert set(base_config().gaussians.region_density) == set(FLAME_REGIONS) | set(demo_head.region_names)


# --- Every key is read


def _names_in_code():
  """Names that are read and strings, in all of the package but the rules."""
  attributes, strings = set(), set()
  for path in (ROOT / "rsatalker_jax").rglob("*.py"):
    if path.name.startswith("config_") or path.name == "workdir.py":
      continue
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        attributes.add(node.attr)
      elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        attributes.add(node.id)
      elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        strings.add(node.value)
  return attributes, strings


def test_every_key_is_read_somewhere():
  attributes, strings = _names_in_code()
  # Members are taken by name from a loop over the section.
  by_loop = ("gaussians.region_density.", "avatar.flame_learning_rates.")
  for key, _ in leaves(base_config().to_dict()):
    name = key.split(".")[-1]
    assert name in attributes or name in strings or key.startswith(by_loop), key


def test_sections_that_become_arguments_are_those_arguments():
  """Neither a key that nothing takes nor a field that no config sets."""
  config = base_config()
  fields = lambda cls: {field.name for field in dataclasses.fields(cls)}
  arguments = lambda function: set(inspect.signature(function).parameters)
  assert set(config.generator) <= fields(MotionConfig)
  for name, made in BASELINES.items():
    assert set(config.baselines.get(name, {})) == fields(made) - {"config", "parent", "name"}
  assert set(config.motion.tracker) == fields(Webcam)
  assert set(config.motion.loss) == fields(MotionLossWeights)
  assert set(config.logging) == fields(Watching)
  assert set(config.head) == arguments(load_head)
  assert set(config.speech.augmentation) == arguments(make_degradations)
  assert set(config.gaussians) - {"color_frames"} == arguments(init_avatar) - {"head", "shape", "static_offset", "seed"}
