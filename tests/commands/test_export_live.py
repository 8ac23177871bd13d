"""export_avatar.py --live: a page of a run's own, and every run and flag that has none."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

import tiny_world
from configs.ablations import VARIANTS
from rsatalker_jax.baselines.motion import make_generator
from rsatalker_jax.commands import export
from rsatalker_jax.errors import InputError
from rsatalker_jax.motion import MotionConfig, MotionGenerator
from rsatalker_jax.runs import load_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """The workdir of a finished causal run of all stages, with voices at one level."""
  root = tmp_path_factory.mktemp("world") / "data"
  tiny_world.write_world(root)
  config = tiny_world.tiny_config(root)
  config.update_from_flattened_dict({**VARIANTS["causal"][1], "speech.level": True})
  workdir = str(tmp_path_factory.mktemp("run"))
  tiny_world.train_quickly(config, workdir)
  return workdir


def header_of(path):
  return json.loads(re.search(r'<script id="header" type="application/json">([^<]*)</script>', path.read_text())[1])


def test_page_is_the_runs(trained, tmp_path, capsys):
  path = tmp_path / "deep" / "page.html"
  export.export_avatar(workdir=trained, out=str(path), live=True)
  run, header = load_run(trained), header_of(path)
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
      f" for 5 relations; run {trained} ({run.stages})"
  )
  assert re.fullmatch(r"left out: the offset corrections \(Eq\. 8\), up to [0-9.e-]+ mm at rest", said[1])


def test_a_run_that_was_told_of_no_relation_has_no_choice(trained, tmp_path, monkeypatch, capsys):
  load = export.load_run

  def load_untold(*arguments, **options):
    run = load(*arguments, **options)
    run.config.motion.social_module = False
    run.params.pop("offsets")
    return run

  monkeypatch.setattr(export, "load_run", load_untold)
  export.export_avatar(workdir=trained, out=str(tmp_path / "page.html"), live=True)
  assert header_of(tmp_path / "page.html")["relations"] == ["unknown"]
  assert "for 1 relations" in capsys.readouterr().out


@pytest.mark.parametrize("changes, message", [
    (dict(out="head.ply"), "--live: found the format ply, expected a page, .html"),
    (dict(motion="a.npz"), "--live: found --motion with it, expected none"),
    (dict(frames=3, frame=2), "--live: found --frame and --frames with it, expected none"),
    (dict(relation="blood,equal"), "--live: found --relation with it, expected none"),
    (dict(workdir="no_run"), "no_run/config.json: found no such file"),
])  # fmt: skip
def test_mistakes_are_one_line_and_leave_no_file(trained, tmp_path, changes, message):
  options = dict(workdir=trained, out="head.html", live=True) | changes
  options["out"] = str(tmp_path / options["out"])
  with pytest.raises(InputError) as error:
    export.export_avatar(**options)
  assert message in str(error.value) and "\n" not in str(error.value)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("params, generator, speech, message", [
    (("avatar",), {}, {}, "motion: found only"),
    (("generator",), {}, {}, "avatar: found only"),
    ((), dict(causal=False), {}, "generator.causal: found False, expected True"),
    ((), dict(own_lookahead=2), {}, "generator.own_lookahead: found 2, expected 0"),
    ((), dict(architecture="faceformer"), {}, "generator.architecture: found 'faceformer', expected 'rsatalker'"),
    ((), {}, dict(encoder="wav2vec2"), "speech.encoder: found 'wav2vec2', expected 'logmel'"),
    ((), {}, dict(causal=False), "speech.causal: found False, expected True"),
])  # fmt: skip
def test_runs_that_cannot_listen_are_told_in_one_line(trained, tmp_path, monkeypatch, params, generator, speech, message):
  """`params`: all that there is; (): everything."""
  run = load_run(trained)
  talker = run.talker
  if "architecture" in generator:
    talker = dataclasses.replace(talker, generator=make_generator(MotionConfig(**run.config.generator | generator), run.config.baselines))
  elif generator:
    talker = dataclasses.replace(talker, generator=MotionGenerator(dataclasses.replace(talker.generator.config, **generator)))
  run.config.speech.update(speech)
  kept = {name: group for name, group in run.params.items() if not params or name in (*params, "social")}
  changed = dataclasses.replace(run, talker=talker, params=kept)
  monkeypatch.setattr(export, "load_run", lambda *_, **__: changed)
  with pytest.raises(InputError) as error:
    export.export_avatar(workdir=trained, out=str(tmp_path / "head.html"), live=True)
  assert str(error.value).startswith(f"{trained}: {message}") and "\n" not in str(error.value)
  assert list(tmp_path.iterdir()) == []
