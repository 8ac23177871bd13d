"""export_avatar.py --live: a page of a run's own, and every run and flag that has none."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny_world
from configs.ablations import VARIANTS
from rsatalker_jax.avatar import init_avatar
from rsatalker_jax.baselines.motion import make_generator
from rsatalker_jax.commands import export
from rsatalker_jax.errors import InputError
from rsatalker_jax.motion import MotionConfig, MotionGenerator
from rsatalker_jax.runs import TrainedRun, shown
from rsatalker_jax.talker import make_talker


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """A finished causal run of all stages, with voices at one level, but for the training: random parameters."""
  root = tmp_path_factory.mktemp("world") / "data"
  root.mkdir()
  tiny_world.write_head(root / "head.npz")
  config = tiny_world.tiny_config(root)
  config.update_from_flattened_dict({**VARIANTS["causal"][1], "speech.level": True})
  talker = make_talker(config)
  features = jnp.zeros(config.generator.features)
  frame, relation = jnp.zeros((1, 256)), jnp.zeros(2, jnp.int32)
  shapes = {
      "generator": jax.eval_shape(talker.generator.init, jax.random.key(0), frame, jnp.zeros((1, 56)), frame, features),
      "social": jax.eval_shape(talker.social.init, jax.random.key(0), relation),
      "offsets": jax.eval_shape(talker.offset_net.init, jax.random.key(0), jnp.zeros(64), jnp.zeros(()), jnp.zeros(56)),
  }
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda x: (0.1 * rng.normal(size=x.shape)).astype(np.float32), shapes)
  del params["generator"]["statistics"]
  params["offsets"] = jax.tree.map(np.zeros_like, params["offsets"])  # All corrections are the same, of 3 mm.
  params["offsets"]["params"]["out"]["bias"] += np.tile(np.float32([0.001, -0.002, 0.002]), len(talker.head.faces))
  statistics = {"motion_mean": np.zeros(56, np.float32), "motion_std": np.ones(56, np.float32)}
  avatar = init_avatar(talker.head, jnp.zeros(2), num_gaussians=200, sh_degree=1)
  params["avatar"] = {field.name: getattr(avatar.gaussians, field.name) for field in dataclasses.fields(avatar.gaussians)}
  buffers = {"generator": statistics, "avatar": {"binding": avatar.binding, "shape": avatar.shape}}
  return TrainedRun(config, talker, params, buffers, "motion:4 avatar:4 joint:3")


@pytest.fixture
def load(made, monkeypatch):
  """Has the command find this run, or another one."""

  def find(run, **others):
    monkeypatch.setattr(shown, "load_run", lambda workdir, **_: others.get(workdir, run))

  find(made)
  return find


def header_of(path):
  return json.loads(re.search(r'<script id="header" type="application/json">([^<]*)</script>', path.read_text())[1])


def test_page_is_the_runs(made, load, tmp_path, capsys):
  path = tmp_path / "deep" / "page.html"
  export.export_avatar(workdir="run", out=str(path), live=True)
  run, header = made, header_of(path)
  assert header["relations"] == ["blood,equal", "blood,unequal", "non_blood,equal", "non_blood,unequal", "unknown"]
  assert header["settings"]["speech"] == {"mels": 64, "hop": 160, "context": 4, "level": True}
  assert header["settings"]["reach"] == 5 and header["settings"]["motionKernel"] == 27
  assert header["background"] == list(run.talker.background)
  tables = {table["name"]: table for table in header["tables"]}
  social = np.stack([run.talker.social_feature(run.params, np.array(x)) for x in ((1, 1), (1, 0), (0, 1), (0, 0), (-1, -1))])
  assert tables["social"]["shape"] == [1, social.size, 1]
  np.testing.assert_allclose(tables["social"]["least"], social.min(), rtol=1e-6)
  # Each number of the generator is there, or is in a row for each relation of the norms that it went into.
  params = {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(run.params["generator"]["params"])}
  folded = sum(v.size for k, v in params.items() if "modulation" in k or re.search(r"(attention|mlp|context)_norm'\]\['norm'", k))
  rows = sum(v.shape[0] for k, v in params.items() if k.endswith("['modulation']['bias']"))
  kept = sum(v.size for v in params.values()) - folded + 5 * rows + social.size + 2 * 56
  assert sum(np.prod(tables[name]["shape"]) for name in header["weights"]) == kept
  said = capsys.readouterr().out.splitlines()
  assert said[0] == (
      f"wrote {path}: {path.stat().st_size / 1e6:.1f} MB, {len(run.avatar.binding)} Gaussians and a generator of {kept} numbers"
      f" for 5 relations; run run ({run.stages})"
  )
  assert said[1:] == ["with the offset corrections (Eq. 8), up to 3 mm at rest"]
  assert tables["offsets/start"]["shape"] == [1, 5 * 64, 1] and tables["offsets/time/kernel"]["shape"] == [1, 64 * 14, 1]
  bias = tables["offsets/out/bias"]
  np.testing.assert_allclose([bias["least"][0], bias["step"][0]], [-0.002, 0.25e-6], rtol=1e-5)  # Up to 0.002: finer steps would be enough.


def test_a_run_that_was_told_of_no_relation_has_no_choice(made, load, tmp_path, capsys):
  config = made.config.copy_and_resolve_references()
  config.motion.social_module = False
  load(dataclasses.replace(made, config=config, params={k: v for k, v in made.params.items() if k != "offsets"}))
  export.export_avatar(workdir="run", out=str(tmp_path / "page.html"), live=True)
  assert header_of(tmp_path / "page.html")["relations"] == ["unknown"]
  assert "for 1 relation;" in capsys.readouterr().out


def test_another_run_may_show_it(made, load, tmp_path, capsys):
  kept = {name: group for name, group in made.params.items() if name in ("social", "generator")}
  load(dataclasses.replace(made, params=kept, stages="motion:4"), other=made)
  options = dict(workdir="run", out=str(tmp_path / "page.html"), live=True)
  export.export_avatar(**options, avatar_from="other")
  assert "200 Gaussians" in (said := capsys.readouterr().out) and "run run (motion:4)" in said
  (tmp_path / "page.html").unlink()

  change = lambda **changes: dataclasses.replace(made, talker=dataclasses.replace(made.talker, head=made.talker.head.replace(**changes)))
  for head, message in (
      (dict(basis=None), "other: head: found a head that does not tell its basis"),
      (dict(basis="arkit"), "run: basis: found flame2020, expected arkit"),
      (dict(faces=made.talker.head.faces[:-1]), "other: head: found 139 faces, expected those 140 of run's head"),
  ):
    load(made, other=change(**head))
    with pytest.raises(InputError) as error:
      export.export_avatar(**options, avatar_from="other")
    assert message in str(error.value)
  with pytest.raises(InputError, match="--avatar_from: found other, expected --live"):
    export.export_avatar(workdir="run", out=str(tmp_path / "page.html"), avatar_from="other")
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changes, message", [
    (dict(out="head.ply"), "--live: found the format ply, expected a page, .html"),
    (dict(motion="a.npz"), "--live: found --motion with it, expected none"),
    (dict(frames=3, frame=2), "--live: found --frame and --frames with it, expected none"),
    (dict(relation="blood,equal"), "--live: found --relation with it, expected none"),
    ({}, "no_run/config.json: found no such file"),
])  # fmt: skip
def test_mistakes_are_one_line_and_leave_no_file(tmp_path, changes, message):
  options = dict(workdir="no_run", out="head.html", live=True) | changes
  options["out"] = str(tmp_path / options["out"])
  with pytest.raises(InputError) as error:
    export.export_avatar(**options)
  assert message in str(error.value) and "\n" not in str(error.value)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("params, generator, speech, message", [
    (("avatar",), {}, {}, "motion: found only"),
    (("generator",), {}, {}, "avatar: found only"),
    ((), dict(causal=False), {}, "generator.causal: found a generator that looks ahead, expected one that is causal"),
    ((), dict(architecture="faceformer"), {}, "generator.architecture: found 'faceformer', expected 'rsatalker'"),
    ((), {}, dict(encoder="wav2vec2"), "speech.encoder: found 'wav2vec2', expected 'logmel'"),
    ((), {}, dict(causal=False), "speech.causal: found False, expected True"),
])  # fmt: skip
def test_runs_that_cannot_listen_are_told_in_one_line(made, load, tmp_path, params, generator, speech, message):
  """`params`: all that there is; (): everything."""
  talker, config = made.talker, made.config.copy_and_resolve_references()
  if "architecture" in generator:
    config.generator.update(generator)
    talker = dataclasses.replace(talker, generator=make_generator(MotionConfig(**config.generator), config.baselines))
  elif generator:
    config.generator.update(generator)
    talker = dataclasses.replace(talker, generator=MotionGenerator(dataclasses.replace(talker.generator.config, **generator)))
  config.speech.update(speech)
  kept = {name: group for name, group in made.params.items() if not params or name in (*params, "social")}
  load(dataclasses.replace(made, config=config, talker=talker, params=kept))
  with pytest.raises(InputError) as error:
    export.export_avatar(workdir="run", out=str(tmp_path / "head.html"), live=True)
  assert str(error.value).startswith(f"run: {message}") and "\n" not in str(error.value)
  assert list(tmp_path.iterdir()) == []
