"""Several processes of one run: how they find each other, and that none waits for ever."""

import importlib.util
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import types

import jax
import pytest

import several_processes
import tiny_world
from rsatalker_jax import cluster
from rsatalker_jax.cluster import Membership, find_membership
from rsatalker_jax.errors import InputError

# --- One of several processes?

SRUN = {"SLURM_JOB_ID": "17", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "4"}
JOBSET = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "3"}
# What a shell or a batch script finds in its environment, though nobody has started several processes.
ALONE = [
    {},
    {"SLURM_NTASKS": "4"},
    {"SLURM_NTASKS": "4(x2)", "SLURM_STEP_NUM_TASKS": "4(x2)", "SLURM_PROCID": "0"},
    {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "localhost"},
    {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "17", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_ID": "batch"},
    {"OMPI_COMM_WORLD_SIZE": "2"},
    {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
    {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
    {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    {"JAX_NUM_PROCESSES": "1", "JAX_COORDINATOR_ADDRESS": "a:1"},
    JOBSET | {"JAX_NUM_PROCESSES": "1"},
]
MANY = [
    (SRUN, Membership("SLURM", None, 1, 2)),  # Of the step, not of the allocation.
    ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, Membership("Open MPI", None, 1, 2)),
    ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, Membership("Cloud TPU", "a:8482", 1, 2)),
    ({"MEGASCALE_COORDINATOR_ADDRESS": "a", "TPU_WORKER_HOSTNAMES": "a,b"}, Membership("Cloud TPU, several slices")),
    ({"JAX_COORDINATOR_ADDRESS": "a:1234"}, Membership("JAX_COORDINATOR_ADDRESS", "a:1234")),
    (
        {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "2"},
        Membership("JAX_COORDINATOR_ADDRESS", "a:1", 2, 3),
    ),
    (JOBSET | {"JAX_COORDINATOR_ADDRESS": "a", "JAX_NUM_PROCESSES": "4"}, Membership("JAX_COORDINATOR_ADDRESS", "a:8482", 3, 4)),
    # GKE's TPUs: their number is in the names of the hosts.
    (
        JOBSET | {"JAX_COORDINATOR_ADDRESS": "a:1234", "TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0"},
        Membership("Cloud TPU", "a:1234", 0, 2),
    ),
]


@pytest.mark.parametrize("variables", ALONE)
def test_a_shell_within_an_allocation_is_a_process_on_its_own(variables):
  assert find_membership(environment=variables) is None


@pytest.mark.parametrize("variables, expected", MANY)
def test_what_a_launcher_says(variables, expected):
  assert find_membership(environment=variables) == expected


def test_flags_go_before_launchers():
  assert find_membership("h:7", 1, 2, environment=SRUN) == Membership("the command line", "h:7", 1, 2)
  assert find_membership("h:7", 0, 1, environment={}) is None


@pytest.mark.parametrize(
    "given, variables, message",
    [
        (("h:7", None, 2), {}, "command line: --process: found nothing beside --coordinator, --processes"),
        ((None, 0, 2), {}, "command line: --coordinator: found nothing"),
        (("h", 0, 2), {}, "--coordinator: found h, expected host:port"),
        (("h:99999", 0, 2), {}, "--coordinator: found h:99999"),
        (("h:7", 2, 2), {}, "--process: found 2, expected 0 to 1"),
        ((), {"JAX_NUM_PROCESSES": "2"}, "environment: JAX_COORDINATOR_ADDRESS: found nothing beside JAX_NUM_PROCESSES"),
        ((), {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2"}, "JAX_PROCESS_ID: found nothing"),
        ((), {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID: found 2, expected 0 to 1"),
        ((), {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "x"}, "TPU_WORKER_ID: found 'x'"),
    ],
)
def test_half_of_what_is_needed_is_one_line(given, variables, message):
  with pytest.raises(InputError, match=message):
    find_membership(*given, environment=variables)


def test_a_pod_that_is_told_nothing_is_one_line(monkeypatch):
  found = {"kubernetes": None}
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: found.get(name))
  with pytest.raises(InputError, match="found pod 3 of an indexed job, .* expected both, as launch/jobset.yaml"):
    find_membership(environment=JOBSET)
  found["kubernetes"] = True  # JAX asks with it.
  assert find_membership(environment=JOBSET) == Membership("Kubernetes")


def test_a_tpu_machine_asks_its_metadata(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "libtpu")
  monkeypatch.setattr(cluster.glob, "glob", lambda pattern: ["/dev/vfio/0"] if "vfio" in pattern else [])
  assert find_membership(environment={}) == Membership("a TPU machine")
  assert find_membership(environment={"JAX_PLATFORMS": "cpu"}) is None
  assert find_membership(environment={"TPU_SKIP_MDS_QUERY": "1"}) is None


@pytest.mark.parametrize("launcher, alone", [("Open MPI", False), ("a TPU machine", True)])
def test_others_that_jax_does_not_find(monkeypatch, launcher, alone):
  def fail(**_):
    raise ValueError("coordinator_address should be defined.")

  monkeypatch.setattr(jax.distributed, "initialize", fail)
  if alone:  # Of no slice.
    cluster.join(Membership(launcher))
  else:
    with pytest.raises(InputError, match="environment: found variables of .*Open MPI.* coordinator_address should be defined"):
      cluster.join(Membership(launcher))


# --- What they agree on


class Store:
  """Stands in for the coordination service's client: values by key, barriers that nobody waits at."""

  def __init__(self):
    self.values = {}

  def key_value_set(self, key, value):
    self.values[key] = value

  def blocking_key_value_get(self, key, milliseconds):
    del milliseconds
    return self.values[key]

  def wait_at_barrier(self, name, milliseconds):
    del name, milliseconds


@pytest.fixture
def as_process(monkeypatch):
  """Makes this process one of two, with a store in common."""
  store = Store()
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)

  def become(number):
    monkeypatch.setattr(cluster, "_state", lambda: types.SimpleNamespace(client=store, process_id=number, num_processes=2))

  return become


def test_what_differs_is_named_with_both_sides(as_process):
  as_process(0)
  cluster.check_agreement({"motion.batch": 4, "head.path": None})
  as_process(1)
  cluster.check_agreement({"motion.batch": 4, "head.path": None})
  with pytest.raises(InputError, match=r"cluster: motion.batch: found 8 in process 1 of 2 on .*, expected 4, as in process 0 of 2 on "):
    cluster.check_agreement({"motion.batch": 8, "head.path": None})
  with pytest.raises(InputError, match="cluster: seed: found 0 in .*, expected nothing, as in process 0"):
    cluster.check_agreement({"motion.batch": 4, "head.path": None, "seed": 0})


def test_a_folder_of_ones_own_is_told_from_a_shared_one(as_process, tmp_path, monkeypatch):
  as_process(0)
  monkeypatch.setattr(pathlib.Path, "unlink", lambda *_, **__: None)  # As long as the other has not looked.
  cluster.check_shared_folder(tmp_path / "run", "--workdir")
  as_process(1)
  cluster.check_shared_folder(tmp_path / "run", "--workdir")
  clock = iter(range(0, 10_000, 5))
  monkeypatch.setattr(cluster, "time", types.SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda _: None))
  for folder in (tmp_path, tmp_path / "nothing"):
    with pytest.raises(InputError, match="--workdir: found a folder of .*'s own, expected the one that process 0 of 2 on .* writes to"):
      cluster.check_shared_folder(folder, "--workdir")


def test_the_first_does_it_before_the_others(as_process, monkeypatch):
  for number in (0, 1):
    order = []
    as_process(number)
    monkeypatch.setattr(cluster, "wait_for_all", lambda what, seconds: order.append("all"))
    cluster.one_at_first(lambda: order.append("work"), "unpacking")
    assert order == (["work", "all"] if number == 0 else ["all", "work"])


# --- Real processes


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  root = tmp_path_factory.mktemp("several") / "world"
  tiny_world.write_world(root)
  config = tiny_world.tiny_config(root)
  config.mesh.cpu_devices = 1
  config.logging.update(dict(log_every=1, checkpoint_every=4, pictures_every=4))
  config.avatar.steps, config.gaussians.capacity, config.density.way = 6, 200, "adaptive"
  config.density.adaptive.update(dict(start=0, stop=4, every=2, gradient_threshold=1e-5))
  config.joint.update(dict(steps=2, drawn_weight=0.0, tracked_weight=0.0))
  return root, config


def error_lines(stderr: str) -> list[str]:
  return [line for line in stderr.replace("\r", "\n").splitlines() if line.startswith("error: ")]


def wait_for_steps(run: pathlib.Path, count: int, processes) -> None:
  path = run / "motion" / "metrics.jsonl"
  deadline = time.monotonic() + several_processes.PATIENCE
  while not path.exists() or len(path.read_text().splitlines()) < count:
    assert time.monotonic() < deadline and all(process.poll() is None for process in processes)
    time.sleep(0.1)


def test_two_processes_are_stopped_one_goes_on_and_two_finish(world, tmp_path):
  """SIGTERM to one of two stops both after the same step; one process goes on from there; two train what is left."""
  _, config = world
  config = config.copy_and_resolve_references()
  config.motion.steps = 100
  arguments = ["train.py", several_processes.write_config(tmp_path / "config.py", config), f"--workdir={tmp_path / 'run'}"]
  processes = several_processes.start(2, [*arguments, "--stage=motion"])
  wait_for_steps(tmp_path / "run", 3, processes)
  processes[1].send_signal(signal.SIGTERM)
  (status, out, err), (other_status, _, other_err) = several_processes.finish(processes)
  assert (status, other_status) == (143, 143), err + other_err
  reached = int(out.split("stopped by a signal at step ")[1].split(";")[0])
  saved = sorted(int(path.name) for path in (tmp_path / "run/motion/checkpoints").iterdir())
  assert saved[-1] == reached

  ((status, out, err),) = several_processes.finish(several_processes.start(1, [*arguments, "--stage=motion"]))
  assert status == 0 and f"motion: continues at step {reached}" in out, err

  (status, out, err), (other_status, other_out, other_err) = several_processes.finish(several_processes.start(2, arguments))
  assert (status, other_status) == (0, 0), err + other_err
  assert "joint: starts from avatar" in out and "joint" not in other_out  # The first alone prints …
  assert len((tmp_path / "run/joint/metrics.jsonl").read_text().splitlines()) == 2  # … and writes.
  assert len(list((tmp_path / "run/joint/tensorboard").glob("events*"))) == 1


def test_whoever_is_left_alone_ends_with_a_line_and_both_go_on_from_one_disk(world, tmp_path):
  """First process 1 is killed and its disk is lost, before anything was saved together; then process 0 is."""
  _, config = world
  config = config.copy_and_resolve_references()
  config.motion.steps = 100_000
  config.logging.update(dict(checkpoint_every=50_000, local_checkpoints=str(tmp_path / "disks"), local_every=2))
  run = tmp_path / "run"
  arguments = ["train.py", several_processes.write_config(tmp_path / "config.py", config), f"--workdir={run}", "--stage=motion"]
  for gone in (1, 0):
    processes = several_processes.start(2, arguments)
    wait_for_steps(run, 5, processes)
    processes[gone].kill()
    killed = time.monotonic()
    outputs = several_processes.finish(processes)
    status, _, err = outputs[1 - gone]
    assert status == 3 and time.monotonic() - killed < 60, err
    assert not list((run / "motion" / "checkpoints").glob("[0-9]*"))
    if gone == 1:
      (disk,) = (tmp_path / "disks").iterdir()
      newest = max(int(path.stem) for path in (disk / "motion" / "process_0").glob("*.npz"))
      shutil.rmtree(disk / "motion" / "process_1")
      (run / "motion" / "metrics.jsonl").unlink()
    else:
      assert f"emergency checkpoint of step {newest}, from process 0, is used" in outputs[0][1]
      assert f"motion: continues at step {newest}" in outputs[0][1]
    line = error_lines(err)[-1]
    assert line.startswith(f"error: process {1 - gone} of 2 on ") and "has gone" in line and "go on from the last checkpoint" in line


def test_an_error_of_one_ends_all_with_its_line(world, tmp_path):
  """Data that is damaged on one host alone: paths are relative, and each host has a folder of its own."""
  root, config = world
  config = config.copy_and_resolve_references()
  for name in ("one", "two"):
    (tmp_path / name).mkdir()
  (tmp_path / "one" / "world").symlink_to(root)
  for key in ("conversations", "relations", "capture", "triplets", "features"):
    config.data[key] = str(pathlib.Path("world") / pathlib.Path(config.data[key]).relative_to(root))
  flag = several_processes.write_config(tmp_path / "config.py", config)
  arguments = [str(several_processes.ROOT / "train.py"), flag, f"--workdir={tmp_path / 'run'}", "--stage=motion"]
  environment = {"PYTHONPATH": str(several_processes.ROOT)}
  processes = several_processes.start(2, arguments, folders=[tmp_path / "one", tmp_path / "two"], environment=environment)
  for status, _, err in several_processes.finish(processes):
    assert status == 2 and "Traceback" not in err, err
    assert error_lines(err)[-1].startswith("error: process 1 of 2 on ") and "world/conversations" in error_lines(err)[-1], err


def test_different_configs_and_an_empty_coordinator_are_one_line(world, tmp_path):
  _, config = world
  flag = several_processes.write_config(tmp_path / "config.py", config)
  arguments = ["train.py", flag, f"--workdir={tmp_path / 'run'}"]
  processes = several_processes.start(2, arguments, each={1: ["--config.motion.batch=4"]})
  lonely = [
      subprocess.Popen(
          [sys.executable, *arguments, f"--coordinator=localhost:{several_processes.free_port()}", f"--process={number}",
           "--processes=2", "--join_seconds=2"],
          cwd=several_processes.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
      )
      for number in (0, 1)
  ]
  for status, _, err in several_processes.finish(processes):
    assert status == 2 and "motion.batch: found 4 in process 1 of 2 on" in error_lines(err)[-1], err
  for (status, _, err), found in zip(several_processes.finish(lonely), ("not all others have come", "no answer from process 0")):
    assert status == 2 and "Traceback" not in err and f"cluster: found {found} at localhost:" in error_lines(err)[-1], err
  assert not (tmp_path / "run").exists()


def test_what_needs_one_process_is_left_to_the_first(tmp_path):
  """All but the first end before they look for the run; the first does."""
  variables = {"OMPI_COMM_WORLD_SIZE": "2"}
  for rank, status, line in (("1", 0, "process 1 of 2: left to process 0"), ("0", 2, "w/config.json: found no such file")):
    done = subprocess.run(
        [sys.executable, "eval.py", f"--workdir={tmp_path}/w"], cwd=several_processes.ROOT, capture_output=True, text=True,
        check=False, env=os.environ | variables | {"OMPI_COMM_WORLD_RANK": rank},
    )
    assert done.returncode == status and line in done.stderr, done.stderr
