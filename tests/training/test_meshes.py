"""Every stage on 1, 2, 4 and 8 devices and on two processes gives what it gives on one device: losses, gradients, states."""

import collections

import numpy as np
import pytest

import mesh_steps
import several_processes
from rsatalker_jax.avatar import FREE

# DATAxFSDP of each case; the first is what the others are compared with.
MESHES = {
    "motion": ("1x1", "1x2", "4x1", "2x4"),
    "adaptive": ("1x1", "2x1", "2x2", "8x1"),
    "mcmc": ("1x1", "4x2"),
    "bank": ("1x1", "1x2", "2x2", "4x2"),
    "joint": ("1x1", "2x1", "1x4", "4x2"),
}
# On two processes with a device each.
PAIRS = {"motion": "1x2", "adaptive": "2x1", "bank": "1x2", "joint": "2x1"}
CLOSE, CLOSE_TO_LARGEST = 1e-5, 1e-6


@pytest.fixture(scope="module")
def found(tmp_path_factory):
  """(case, mesh, processes) -> arrays by path."""
  root = tmp_path_factory.mktemp("meshes")
  mesh_steps.write_world(root / "data")
  program = ["tests/mesh_steps.py", str(root / "data"), str(root)]
  alone = several_processes.start(1, program + [f"{case}:{mesh}" for case, meshes in MESHES.items() for mesh in meshes])
  pair = several_processes.start(2, program + [f"{case}:{mesh}" for case, mesh in PAIRS.items()])
  ended = several_processes.finish([*alone, *pair], seconds=1800)  # Seconds of work, whatever else the machine does.
  assert [status for status, _, _ in ended] == [0, 0, 0], "\n".join(errors[-2000:] for _, _, errors in ended)
  paths = root.glob("*.npz")
  return {tuple(path.stem.split("-")): dict(np.load(path)) for path in paths}


def assert_same(found, expected):
  """Whole numbers are equal; others to 1e-5 of an array's largest, or 1e-6 of the largest of its kind: what is nothing but
  rounding, like the gradient of a key's bias, has no digits of its own."""
  assert found.keys() == expected.keys()
  kind = lambda path: "/".join(path.split("/")[:2])
  largest = collections.Counter()
  for path, x in expected.items():
    largest[kind(path)] = max(largest[kind(path)], np.abs(x).max(initial=0))
  for path, x in expected.items():
    if x.dtype.kind in "iub":
      np.testing.assert_array_equal(found[path], x, err_msg=path)
    else:
      atol = CLOSE * np.abs(x).max(initial=0) + CLOSE_TO_LARGEST * largest[kind(path)]
      np.testing.assert_allclose(found[path], x, rtol=0, atol=atol, err_msg=path)


@pytest.mark.parametrize(
    "case, mesh, processes",
    [(case, mesh, 1) for case, meshes in MESHES.items() for mesh in meshes[1:]] + [(case, mesh, 2) for case, mesh in PAIRS.items()],
)
def test_a_mesh_changes_nothing(found, case, mesh, processes):
  arrays, alone = found[case, mesh, str(processes)], found[case, "1x1", "1"]
  split, whole = arrays.pop("split"), dict(alone)
  assert whole.pop("split") == 0
  assert (split > 0) == (not mesh.endswith("x1"))  # fsdp does split something.
  assert_same(arrays, whole)


def test_the_cases_are_what_they_are_meant_to_be(found):
  """Density control acts, and neither on nothing nor on all; every stage moves what it trains."""
  binding = lambda case: found[case, "1x1", "1"]["state/buffers/avatar/binding"]
  faces = np.count_nonzero(np.unique(binding("mcmc")) != FREE)
  bank = np.count_nonzero(found["bank", "1x1", "1"]["state/buffers/bank/binding"] != FREE, axis=1)
  assert ((faces < bank) & (bank < 300)).all()
  for case in ("adaptive", "mcmc"):
    live = np.count_nonzero(binding(case) != FREE)
    assert faces < live < len(binding(case))
  for case in MESHES:
    arrays = found[case, "1x1", "1"]
    last = max(path.split("/")[0] for path in arrays if path.startswith("step "))
    assert arrays["state/step"] == mesh_steps.CASES[case][2] == int(last.split()[1]) + 1
    groups = {path.split("/")[2] for path, x in arrays.items() if path.startswith(f"{last}/gradients/") and np.any(x)}
    assert groups == {
        "motion": {"generator", "social"},
        "adaptive": {"avatar"},
        "mcmc": {"avatar"},
        "bank": {"bank", "flame"},
        "joint": {"generator", "social", "offsets", "avatar"},
    }[case]
