"""Values of a config that depend on each other. `config_values.py` looks at each by itself before."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rsatalker_jax.baselines.motion import BASELINES
from rsatalker_jax.errors import InputError
from rsatalker_jax.motion import MotionGenerator, longest_lookahead
from rsatalker_jax.types import FPS

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


def _is_halved(whole: int, part: int) -> bool:
  """Whether `part` is `whole` halved once or more often."""
  return whole % part == 0 and whole > part and (whole // part).bit_count() == 1


def check_together(values: Mapping[str, Any], source: object) -> None:
  """Looks whether values that depend on each other fit; each by itself is right already.

  Args:
    values: all of a config, every section a mapping.
    source: what the error names.

  Raises:
    InputError: names the first key that does not fit others.
  """
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
