"""Two CPU devices for every test, so that meshes and shardings are exercised, as in the demo."""

import gc
import importlib.metadata
import os

# Tracing makes millions of objects that stay, and to look for rings among them again and again took a tenth of the time.
gc.set_threshold(100_000, 50, 100)

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiled programs are kept between runs of the suite and shared by its processes, the smallest too: they are most.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(os.path.dirname(__file__), "..", ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Most of the suite's time is compilation of programs that run once: LLVM optimises none and takes each whole, and XLA's older
# way to write loops is three times as fast as its fusion emitters. jaxlib 0.12 has only those, and ends at a flag that it
# does not know.
_FLAGS = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
  _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS])

import jax

jax.config.update("jax_num_cpu_devices", 2)

# Tests import the top-level configs and each other's worlds.
import pathlib
import sys

_TESTS = pathlib.Path(__file__).parent
sys.path[:0] = [str(_TESTS), str(_TESTS.parent)]

# The shapes in signatures are checked in tests, and only there.
import jaxtyping

jaxtyping.install_import_hook(["rsatalker_jax", "splat_kernels"], "shape_checks.check")

import collections

import hypothesis
import pytest

# The same examples in each run, and none refused because the machine was busy.
hypothesis.settings.register_profile(
    "suite",
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.differing_executors],
)
hypothesis.settings.load_profile("suite")


# Files that take longest, in tests/, which go first, so that no worker is left alone with one. pytest collects folders given
# beside each other as one, in the order of names. Tiny runs that come after the first find its programs compiled.
_LONGEST = (
    "test_end_to_end.py", "splat_kernels/test_xla.py", "splat_kernels/test_transformations.py",
    "splat_kernels/test_pallas_mosaic_tpu.py", "commands/test_evaluate.py", "splat_kernels/test_policies.py",
    "splat_kernels/test_pallas_triton.py", "report/test_report.py", "training/test_loop.py", "motion/test_generator.py",
    "splat_kernels/test_cameras.py", "training/test_joint_stage.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
  places = {_TESTS / name: place for place, name in enumerate(_LONGEST)}
  items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(autouse=True, scope="module")
def _room_for_programs():
  """Forgets compiled programs when there are many: each is some mappings of memory, of which Linux allows 65530."""
  yield
  maps = pathlib.Path("/proc/self/maps")
  if maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
    jax.clear_caches()


@pytest.fixture
def unchecked_signatures():
  """As in production: functions see wrong shapes themselves."""
  jaxtyping.config.update("jaxtyping_disable", True)
  yield
  jaxtyping.config.update("jaxtyping_disable", False)


def pytest_terminal_summary(terminalreporter):
  """Says in the last lines what was not tested, and why."""
  skipped = terminalreporter.stats.get("skipped", [])
  reasons = collections.Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
  for reason, count in reasons.most_common():
    terminalreporter.write_line(f"skipped: {count} {'test' if count == 1 else 'tests'}: {reason}")
