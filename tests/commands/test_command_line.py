"""The programs as a user meets them: a mistake is one line on stderr, and the status is not 0."""

import os
import pathlib
import stat
import subprocess
import sys

import jax
import pytest

from rsatalker_jax.commands import command_line

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train.py", "--config=configs/nothing.py", "--workdir=w"], "'configs/nothing.py', expected a config file"),
        (["train.py", "--config=configs/demo.py:cousins", "--workdir=w"], "expected full, paper, ours, no_relation, dualtalk"),
        (["train.py", "--config=configs/demo.py", "--workdir=w", "--config.motion.step=1"], "Did you mean"),
        (["train.py", "--config=configs/demo.py", "--workdir=w", "motion"], "found motion, expected only flags"),
        (["train.py", "--config=configs/demo.py:l2l", "--workdir=w", "--stage=code"],
         "--stage=code: value should be one of <codes|motion|avatar|joint>"),
        (["train.py", "--config=configs/demo.py", "--workdir=w", "--config.speech.hop=150"],
         "config: speech.hop: found 150, expected a divisor of 320"),
        (["encode_speech.py", "--config=configs/demo.py", "--config.speech.num_mels=0"], "config: speech.num_mels: found 0"),
        (["eval.py", "--config=configs/demo.py", "--workdir=w"], "w/config.json: found no such file"),
        (["eval.py", "--workdir=w", "--split=train"], "--split=train: value should be one of <val|test|ood>"),
        (["generate.py", "--workdir=w", "--speech_a=a", "--motion_a=b", "--speech_b=c", "--relation=d", "--out=e"],
         "w/config.json: found no such file"),
        (["export_avatar.py", "--workdir=w", "--out=e.obj"], "w/config.json: found no such file"),
        (["export_avatar.py", "--workdir=gs://bucket/run", "--out=e.ply"], "--workdir: found gs://bucket/run"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, message):
  arguments = [argument.replace("=w", f"={tmp_path}/w") for argument in arguments]
  done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 2, done.stderr
  lines = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
  assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], done.stderr
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content, message",
    [
        ("def get_config(): return dict(seed=0)", "--config: found dict, expected a ConfigDict"),
        ("x = = 1", "--config: found SyntaxError: invalid syntax (config.py, line 1)"),
        ("import nothing_here", "No module named 'nothing_here' (C, line 1)"),
        ("x = 1", "has no attribute 'get_config'"),
    ],
)
def test_a_config_file_that_is_none_is_one_line(tmp_path, content, message, monkeypatch, capsys):
  path = tmp_path / "config.py"
  path.write_text(content + "\n")
  monkeypatch.setattr(sys, "argv", ["encode", f"--config={path}"])
  code = "import sys; from rsatalker_jax.commands import command_line; command_line.run('encode')"
  done = subprocess.run(
      [sys.executable, "-c", code, f"--config={path}"], cwd=ROOT, capture_output=True, text=True, check=False
  )
  lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
  assert done.returncode == 2 and "Traceback" not in done.stderr
  assert len(lines) == 1 and message.replace("C,", f"{path},") in lines[0], done.stderr


@pytest.fixture
def environment(monkeypatch):
  """Sets variables."""

  def set_all(variables):
    for name, value in variables.items():
      monkeypatch.setenv(name, value)

  return set_all


# --- Where compiled programs are kept


@pytest.fixture
def cache_option():
  before = jax.config.jax_compilation_cache_dir
  yield lambda: jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture
def nobody(environment, monkeypatch, tmp_path):
  """A user without a home, whose temporary files are in a folder of the test."""
  (tmp_path / "temporary").mkdir()
  monkeypatch.setattr(command_line.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))

  def no_home():
    raise RuntimeError("Could not determine home directory.")

  monkeypatch.setattr(command_line.pathlib.Path, "home", no_home)
  monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
  return tmp_path / "temporary" / f"rsatalker_jax-{os.getuid()}"


def test_without_a_home_caches_are_temporary_and_the_users_own(nobody, monkeypatch, cache_option):
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  command_line.use_devices({"cpu_devices": 0})
  assert cache_option() == str(nobody) and os.environ["NUMBA_CACHE_DIR"] == str(nobody / "numba")
  assert stat.S_IMODE(nobody.stat().st_mode) == 0o700


def test_the_users_own_cache_is_left_alone(nobody, monkeypatch, cache_option):
  jax.config.update("jax_compilation_cache_dir", "as it was")
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "mine")
  monkeypatch.setenv("NUMBA_CACHE_DIR", "mine too")
  command_line.use_devices({"cpu_devices": 0})
  assert cache_option() == "as it was" and os.environ["NUMBA_CACHE_DIR"] == "mine too"


def test_a_home_is_preferred_if_it_can_be_written(nobody, monkeypatch, tmp_path):
  monkeypatch.setattr(command_line.pathlib.Path, "home", lambda: tmp_path / "home")
  assert command_line.cache_folder() == tmp_path / "home" / ".cache" / "rsatalker_jax"
  (tmp_path / "file").write_text("x")
  monkeypatch.setattr(command_line.pathlib.Path, "home", lambda: tmp_path / "file")
  assert command_line.cache_folder() == nobody


def test_a_folder_that_another_user_has_made_is_not_taken(nobody, monkeypatch):
  """Compiled programs are run."""
  nobody.mkdir()
  made_by = os.getuid() + 1
  lstat = pathlib.Path.lstat
  monkeypatch.setattr(pathlib.Path, "lstat", lambda path: os.stat_result([*lstat(path)[:4], made_by, *lstat(path)[5:]]))
  assert command_line.cache_folder() is None


