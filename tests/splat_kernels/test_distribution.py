"""The library as it is installed: built from its folder, imported where nothing but its own requirements can be."""

import ast
import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

import splat_kernels

FOLDER = pathlib.Path(__file__).parents[2] / "splat_kernels"
PROJECT = tomllib.loads((FOLDER / "pyproject.toml").read_text())
REQUIREMENTS = ("jax", "jaxtyping", "numpy")

# Refuses all that is installed but what is given, says how long the import took, draws and differentiates, and names what
# was imported for it.
SCRIPT = """
import importlib.metadata, sys, time

class Refuse:
  allowed = set({allowed})
  installed = set(importlib.metadata.packages_distributions())

  def find_spec(self, name, path=None, target=None):
    top = name.partition(".")[0]
    if top in self.installed - self.allowed:
      raise ModuleNotFoundError(f"{{name}} is none of the library's requirements", name=name)

sys.meta_path.insert(0, Refuse())
sys.path.insert(0, {folder!r})
start = time.process_time()
import splat_kernels
print("import", round(time.process_time() - start, 3), "s of CPU time")
print("from", splat_kernels.__file__)

{code}
assert image.shape == (256, 256, 3) and 0.3 < float(image[128, 128].sum()) < 3 and float(image[0, 0].sum()) == 0
assert all(bool((abs(g) > 0).any()) for g in gradients.values())
print("modules", *sys.modules)
"""


def first_code(path: pathlib.Path) -> str:
  """The first block of Python of a page."""
  return re.search(r"```python\n(.*?)```", path.read_text(), re.DOTALL)[1]


def requirements_of(names) -> set[str]:
  """Distributions that these need, themselves included, by their normalised names."""
  found, waiting = set(), [*names]
  while waiting:
    name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
    if name in found:
      continue
    found.add(name)
    for requirement in importlib.metadata.requires(name) or []:
      if "extra ==" not in requirement:
        waiting.append(re.match(r"[\w.-]+", requirement)[0])
  return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  # A copy: a build leaves files in its folder.
  root = tmp_path_factory.mktemp("distribution")
  left_out = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
  shutil.copytree(FOLDER, root / "splat_kernels", ignore=left_out)
  pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
  subprocess.run([*pip, "--wheel-dir", str(root), str(root / "splat_kernels")], check=True)
  (path,) = root.glob("*.whl")
  return path


def test_a_wheel_holds_all_modules_the_licence_and_the_type_marker(wheel):
  version = splat_kernels.__version__
  assert wheel.name == f"splat_kernels-{version}-py3-none-any.whl"
  held = set(zipfile.ZipFile(wheel).namelist())
  modules = {f"splat_kernels/{path.relative_to(FOLDER)}" for path in FOLDER.rglob("*.py")}
  info = f"splat_kernels-{version}.dist-info"
  others = {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "top_level.txt", "licenses/LICENSE")}
  assert held == {m for m in modules if "/build/" not in m} | {"splat_kernels/py.typed"} | others
  licence = zipfile.ZipFile(wheel).read(f"{info}/licenses/LICENSE").decode()
  assert licence == (FOLDER.parent / "LICENSE").read_text()


def test_what_is_installed_draws_with_its_requirements_alone(wheel, tmp_path):
  pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(tmp_path)]
  subprocess.run([*pip, str(wheel)], check=True)
  needed = requirements_of(REQUIREMENTS)
  tops = importlib.metadata.packages_distributions().items()
  allowed = {top for top, names in tops if needed & {re.sub(r"[-_.]+", "-", name).lower() for name in names}}
  assert {"jax", "jaxlib", "numpy", "jaxtyping"} <= allowed and not {"pytest", "flax", "optax", "PIL"} & allowed
  script = SCRIPT.format(allowed=sorted(allowed), folder=str(tmp_path), code=first_code(FOLDER / "README.md"))
  # -I: neither this folder nor the environment says where modules are.
  done = subprocess.run(
      [sys.executable, "-I", "-c", script],
      cwd=tmp_path,
      env={**os.environ, "JAX_PLATFORMS": "cpu"},
      capture_output=True,
      text=True,
      check=False,
  )
  assert done.returncode == 0, done.stderr
  took, place, modules = done.stdout.splitlines()
  print(took)
  assert place.startswith(f"from {tmp_path}")
  imported = set(modules.split())
  assert "splat_kernels.xla" in imported
  # On a CPU no kernel of another device: their parts of JAX cost a second, and may be gone from the next JAX.
  assert not [name for name in imported if "pallas" in name]
  assert not imported & {"splat_kernels.bench", "splat_kernels.peers", "splat_kernels.testing", "splat_kernels.reference"}


def test_importing_asks_for_nothing_but_requirements():
  """At their top, modules import their own package, requirements and the standard library; bench and testing more."""
  allowed = {*REQUIREMENTS, "splat_kernels", *sys.stdlib_module_names}
  for path in FOLDER.rglob("*.py"):
    if "testing" in path.parts or "build" in path.parts:
      continue
    for node in ast.parse(path.read_text()).body:
      names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
      names += [node.module] if isinstance(node, ast.ImportFrom) else []
      assert {name.partition(".")[0] for name in names} <= allowed, path


def test_what_is_said_of_the_version_and_the_packages():
  assert {re.match(r"\w+", r)[0] for r in PROJECT["project"]["dependencies"]} == set(REQUIREMENTS)
  packages = {".".join(["splat_kernels", *p.parent.relative_to(FOLDER).parts]) for p in FOLDER.rglob("__init__.py")}
  assert set(PROJECT["tool"]["setuptools"]["packages"]) == {p for p in packages if ".build" not in p}
  version = splat_kernels.__version__
  assert re.search(r"^## \[([\d.]+)\]", (FOLDER / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == version
  assert f"\nversion: {version}\n" in (FOLDER / "CITATION.cff").read_text()
