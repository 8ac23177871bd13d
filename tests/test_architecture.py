"""Arrows between rooms point one way (docs/architecture.md): who may import whom."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# What a room may import of rsatalker_jax, besides itself; splat_kernels where it is named.
_FOUNDATION = {"types", "errors", "files", "pickles", "npz", "lmdb"}
_INFERENCE = _FOUNDATION | {
    "head", "speech", "social", "motion", "avatar", "baselines", "data", "evaluation", "media", "talker", "sharding", "splat_kernels",
}
ALLOWED = {
    "speech": _FOUNDATION,
    "social": _FOUNDATION,
    "motion": _FOUNDATION | {"social", "speech"},
    "head": _FOUNDATION,
    "avatar": _FOUNDATION | {"head", "splat_kernels"},
    "baselines": _FOUNDATION | {"head", "speech", "social", "motion", "avatar", "data", "evaluation", "splat_kernels"},
    "data": _FOUNDATION | {"social", "head"},
    "evaluation": _FOUNDATION | {"data", "social", "head", "splat_kernels"},
    "media": _FOUNDATION | {"data", "head", "avatar", "splat_kernels"},
    "web": {"errors"},
    "study": _FOUNDATION | {"data", "evaluation", "web"},
    "labelling": _FOUNDATION | {"data", "evaluation", "social", "web"},
    "sharding": _FOUNDATION,
    "cluster": {"errors"},
    "talker": _INFERENCE - {"talker", "media", "evaluation"},
    "runs": _INFERENCE,
    "report": _INFERENCE | {"runs"},
    "live": _INFERENCE | {"runs", "web"},
    "training": _INFERENCE | {"runs", "cluster"},
    "types": set(),
    "errors": set(),
    "files": {"errors"},
    "npz": {"errors", "files"},
    "lmdb": {"errors", "files"},
    "pickles": {"errors", "files", "npz"},
}
# Of the commands only those that train, or repeat a step, import training code.
_COMMANDS = _INFERENCE | {"cluster", "runs", "report", "study", "labelling", "live", "web", "commands"}


def imported_rooms(path: pathlib.Path) -> set[str]:
  """First parts below rsatalker_jax of all that a module imports, and "splat_kernels"."""
  rooms = set()
  for node in ast.walk(ast.parse(path.read_text())):
    names = []
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import"
      names = [f"{node.module}.{alias.name}" for alias in node.names]
    for name in names:
      package, _, rest = name.partition(".")
      if package == "rsatalker_jax":
        rooms.add(rest.split(".")[0])
      elif package in ("splat_kernels", "configs", "tests"):
        rooms.add(package)
  return rooms


def modules(room: str) -> list[pathlib.Path]:
  folder = ROOT / "rsatalker_jax" / room
  return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def test_every_room_has_a_rule():
  entries = (ROOT / "rsatalker_jax").iterdir()
  rooms = {p.stem for p in entries if p.suffix == ".py" or (p.is_dir() and (p / "__init__.py").exists())}
  assert rooms - {"__init__", "__main__"} <= ALLOWED.keys() | {"commands"}


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_rooms_import_what_they_may(room):
  for path in modules(room):
    if path.exists():
      assert imported_rooms(path) <= ALLOWED[room] | {room}, path


def test_of_the_commands_only_training_imports_training_code():
  for path in modules("commands"):
    allowed = _COMMANDS | ({"training"} if path.name in ("train.py", "replay.py") else set())
    assert imported_rooms(path) <= allowed, path


@pytest.mark.parametrize("folder", ["splat_kernels", "examples"])
def test_the_rasterizer_is_a_library_of_its_own(folder):
  for path in (ROOT / folder).rglob("*.py"):
    assert imported_rooms(path) <= {"splat_kernels"}, path
