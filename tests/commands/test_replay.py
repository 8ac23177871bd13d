"""A step that was not finite, repeated by the command: what it says of where that arose."""

import dataclasses
import inspect
import pathlib
import shutil

import jax
import jax.numpy as jnp
import pytest

import tiny_world
from rsatalker_jax.commands import train
from rsatalker_jax.commands.replay import replay_step
from rsatalker_jax.errors import InputError
from rsatalker_jax.training import broken_steps, loop


def signs_of(key):
  return jnp.sign(jax.random.normal(key, (16,)))


def break_step(params, buffers, batch, key, step):
  """Of the third step the third term is a root of a negative number, and 16 are infinite, with signs that the key says."""
  size = sum(jnp.sum(x**2) for x in jax.tree.leaves(params))
  sign = jnp.where(step == 2, -1.0, 1.0)
  root = jnp.sqrt(sign * size)
  signs = {f"sign{i:02d}": jnp.where(step == 2, sign * jnp.inf, 0.0) for i, sign in enumerate(signs_of(key))}
  return size + root, {"size": size, "root": root, **signs}


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
  """A run whose third step broke, and makers of stages whose third step does."""
  root = tmp_path_factory.mktemp("broken")
  tiny_world.write_world(root / "data")
  config = tiny_world.tiny_config(root / "data")
  make_stage = train.make_stage
  plain = dict(loss=break_step, room=None, pictures=None, evaluate=None)
  with pytest.MonkeyPatch.context() as monkeypatch:
    monkeypatch.setattr(train, "make_stage", lambda *given: dataclasses.replace(make_stage(*given), **plain))
    with pytest.raises(loop.NonFiniteLoss, match="step 3: not finite: root=nan, sign00=.*; kept in"):
      train.train(config, str(root / "run"), stage="motion")
    yield str(root / "run")


def test_it_says_what_is_not_finite_and_where_that_arose(broken):
  text = replay_step(broken)
  lines, first = inspect.getsourcelines(break_step)
  (line,) = [first + i for i, words in enumerate(lines) if "jnp.sqrt" in words]
  assert text.startswith("stage motion, step 3, taken by 1 process\n")
  assert "its state, not finite: nothing" in text and "In its batch, not finite: nothing" in text
  key = jax.random.fold_in(broken_steps.find(f"{broken}/motion").key, 2)
  signs = [f"  sign{i:02d}={'-' if sign < 0 else ''}inf" for i, sign in enumerate(signs_of(key))]
  assert "\n".join(["Of its terms, not finite:", "  loss=nan", "  root=nan", *signs, ""]) in text
  assert "['generator']" in text and "of them NaN" in text
  arose = text.split("arose in\n")[1]
  assert arose.startswith("  sqrt: ") and f"test_replay.py:{line} (break_step)" in arose.splitlines()[0]
  assert text.endswith("The step as training takes it gives the same terms, to the bit.")


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(step=4), "broken: found 4; kept are 3, expected a step that was not finite"),
        (dict(stage="joint"), "joint/broken: found no step that broke"),
    ],
)
def test_steps_that_were_not_kept_are_one_line(broken, options, message):
  with pytest.raises(InputError, match=message):
    replay_step(broken, **options)


def test_a_run_without_broken_steps_is_one_line(tmp_path):
  with pytest.raises(InputError, match="found no step that broke"):
    replay_step(str(tmp_path))


def test_damaged_files_are_one_line(broken, tmp_path):
  shutil.copytree(broken, tmp_path / "run")
  kept = tmp_path / "run" / "motion" / "broken" / "3"
  for content in ("{", "[]", '{"step": 3}'):
    (kept / "broken.json").write_text(content)
    with pytest.raises(InputError, match="broken.json: found a damaged file"):
      replay_step(str(tmp_path / "run"))
  shutil.copy(pathlib.Path(broken, "motion", "broken", "3", "broken.json"), kept)
  shutil.rmtree(kept / "arrays")
  with pytest.raises(InputError, match="broken/3/arrays: found .*, expected what a step of this config started from"):
    replay_step(str(tmp_path / "run"))
