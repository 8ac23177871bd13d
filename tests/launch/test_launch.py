"""What launches a training elsewhere: a JobSet as its schema has it, a batch script, a container's file list, docs' lines."""

import copy
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jsonschema
import pytest
import yaml

from rsatalker_jax import cluster

ROOT = pathlib.Path(__file__).parent.parent.parent
LAUNCH = ROOT / "launch"
SCHEMA = yaml.safe_load((pathlib.Path(__file__).parent / "jobset_schema.yaml").read_text())
JOBSET = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())


def validate(manifest) -> None:
  jsonschema.Draft202012Validator(SCHEMA, format_checker=jsonschema.FormatChecker()).validate(manifest)


def parts(manifest):
  """The manifest's job, pod and container."""
  job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
  pod = job["template"]["spec"]
  return job, pod, pod["containers"][0]


def flag(arguments, name: str) -> str:
  return next(value for value in arguments if value.startswith(f"{name}=")).partition("=")[2]


def load_config(arguments):
  name, _, variant = flag(arguments, "--config").partition(":")
  spec = importlib.util.spec_from_file_location("launched_config", ROOT / name)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*filter(None, [variant]))


def test_the_jobset_is_as_its_schema_has_it():
  jsonschema.Draft202012Validator.check_schema(SCHEMA)
  validate(JOBSET)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda js: js.update(apiVersion="jobset.x-k8s.io/v1alpha1"),
        lambda js: js["spec"].update(failurepolicy={}),
        lambda js: js["spec"]["failurePolicy"]["rules"][0].update(action="Restart"),
        lambda js: js["spec"]["failurePolicy"]["rules"][0].pop("name"),
        lambda js: js["spec"]["failurePolicy"]["rules"][0].update(onJobFailureMessagePatterns=["exit code ("]),
        lambda js: js["spec"]["replicatedJobs"][0].pop("template"),
        lambda js: parts(js)[0].update(completions="64"),
        lambda js: parts(js)[0]["podFailurePolicy"]["rules"][0].update(onPodConditions=[]),
        lambda js: parts(js)[1].update(restartPolicy="Always"),
        lambda js: parts(js)[2]["env"].append({"name": "JAX_NUM_PROCESSES", "value": 64}),  # Kubernetes takes text alone.
        lambda js: parts(js)[2]["resources"]["limits"].update({"google.com/tpu": "four"}),
    ],
)
def test_the_schema_sees_mistakes(spoil):
  manifest = copy.deepcopy(JOBSET)
  spoil(manifest)
  with pytest.raises(jsonschema.ValidationError):
    validate(manifest)


def test_the_jobset_agrees_with_itself():
  job, pod, container = parts(JOBSET)
  jobs = JOBSET["spec"]["replicatedJobs"]
  environment = {entry["name"]: entry["value"] for entry in container["env"]}
  assert len(jobs) == jobs[0]["replicas"] == 1
  assert job["completionMode"] == "Indexed"  # Else a pod has no number.
  assert job["completions"] == job["parallelism"] == int(environment["JAX_NUM_PROCESSES"])
  name = JOBSET["metadata"]["name"]
  host, port = environment["JAX_COORDINATOR_ADDRESS"].split(":")
  assert host == f"{name}-{jobs[0]['name']}-0-0.{name}" and JOBSET["spec"]["network"]["enableDNSHostnames"]
  assert int(port) in {entry["containerPort"] for entry in container["ports"]}
  # A slice of so many chips on so many hosts.
  chips = 1
  for side in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"):
    chips *= int(side)
  assert chips == job["completions"] * container["resources"]["limits"]["google.com/tpu"]
  assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
  # Data and runs, which the config and the command line name, lie in the folder that all hosts share.
  (home,) = container_lines("WORKDIR")
  shared = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "shared"]
  config = load_config(container["args"])
  for path in (config.data.conversations, config.data.features, config.data.triplets, flag(container["args"], "--workdir")):
    assert f"{home[0]}/{path.split('/')[0]}" in shared
  assert "local_checkpoints" in config.logging
  local = flag(container["args"], "--config.logging.local_checkpoints")
  assert {"name": "local", "mountPath": local} in container["volumeMounts"]


def test_the_jobsets_processes_find_each_other():
  environment = {entry["name"]: entry["value"] for entry in parts(JOBSET)[2]["env"]}
  environment |= {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "5"}  # Of every pod of an indexed job.
  membership = cluster.find_membership(environment=environment)
  assert (membership.coordinator, membership.process, membership.processes) == ("rsatalker-train-0-0.rsatalker:8476", 5, 64)


def status_of_jobset(exit_code: int, *, disrupted: bool = False) -> str:
  """What JobSet does after a pod has ended, by its rules and the job's: Kubernetes' own reading, in words."""
  job, _, container = parts(JOBSET)
  reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
  for number, rule in enumerate(job["podFailurePolicy"]["rules"]):
    codes = rule.get("onExitCodes")
    by_code = codes and codes["containerName"] == container["name"] and exit_code in codes["values"]
    by_condition = disrupted and {"type": "DisruptionTarget"} in rule.get("onPodConditions", [])
    if by_code or by_condition:
      what = f"Container train for pod default/x failed with exit code {exit_code}" if by_code else "Pod default/x has condition DisruptionTarget"
      reason, message = "PodFailurePolicy", f"{what} matching {rule['action']} rule at index {number}"
      break
  for rule in JOBSET["spec"]["failurePolicy"]["rules"]:
    patterns = rule.get("onJobFailureMessagePatterns", [""])
    if reason in rule["onJobFailureReasons"] and any(re.search(pattern, message) for pattern in patterns):
      return rule["action"]
  return "RestartJobSet"


def test_what_the_jobset_starts_again():
  """By the program's statuses: 2 for a mistake, 128 + 15 after SIGTERM, 3 for a lost partner, others for crashes."""
  assert parts(JOBSET)[0]["backoffLimit"] == 0 and parts(JOBSET)[1]["restartPolicy"] == "Never"
  assert status_of_jobset(2) == "FailJobSet"
  assert status_of_jobset(143) == status_of_jobset(137, disrupted=True) == "RestartJobSetAndIgnoreMaxRestarts"
  assert status_of_jobset(3) == status_of_jobset(1) == status_of_jobset(137) == status_of_jobset(23) == "RestartJobSet"


def write_program(path: pathlib.Path, text: str) -> None:
  path.write_text(f"#!/bin/bash\n{text}\n")
  path.chmod(0o755)


@pytest.mark.parametrize(
    "status, restarts, requeued",
    [(0, 0, False), (1, 0, False), (2, 0, False), (3, 0, True), (143, 4, True), (137, 0, True), (143, 20, False)],
)
def test_the_batch_script_queues_again_what_can_go_on(tmp_path, status, restarts, requeued):
  write_program(tmp_path / "srun", f'printf "%s\\n" "$@" > {tmp_path}/arguments; exit {status}')
  write_program(tmp_path / "scontrol", f'echo "$@" > {tmp_path}/requeued')
  environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": str(restarts)}
  command = ["bash", LAUNCH / "slurm.sbatch", "--config=configs/demo.py", "--workdir=a folder"]
  done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
  assert done.returncode == status
  arguments = (tmp_path / "arguments").read_text().splitlines()
  assert arguments == ["--kill-on-bad-exit=1", ".venv/bin/python", "train.py", "--config=configs/demo.py", "--workdir=a folder"]
  assert (tmp_path / "requeued").exists() == requeued
  if requeued:
    assert (tmp_path / "requeued").read_text() == "requeue 17\n"


def container_lines(word: str) -> list[list[str]]:
  text = (LAUNCH / "Containerfile").read_text().replace("\\\n", " ")
  return [line.split()[1:] for line in text.splitlines() if line.startswith(word + " ")]


def test_the_container_has_what_training_needs(tmp_path):
  """What is copied is there, and enough: train.py runs from it alone."""
  for *sources, target in container_lines("COPY"):
    for source in sources:
      assert (ROOT / source).exists(), source
      if (ROOT / source).is_dir():
        assert target == source
        shutil.copytree(ROOT / source, tmp_path / target, ignore=shutil.ignore_patterns("__pycache__"))
      else:
        shutil.copy(ROOT / source, tmp_path / target)
  (entry,) = container_lines("ENTRYPOINT")
  assert " ".join(entry) == '["python", "train.py"]'  # A list, not a line for a shell, which would keep SIGTERM to itself.
  config = ["--config=configs/demo.py", "--workdir=run", "--stage=none"]
  # -I would hide the folder of the script, too; the environment's paths are left out instead.
  environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
  done = subprocess.run(
      [sys.executable, "train.py", *config], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
  )
  assert done.returncode == 2 and "--stage" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_the_container_installs_what_was_tested():
  (base,) = container_lines("FROM")
  version = re.search(r"python:(\d+\.\d+)", base[0])[1]
  assert f"{version}" in re.search(r"Python 3.11 .* and (.*) \(jax", (ROOT / "requirements.txt").read_text())[1].split(", ")
  (install,) = [line for line in container_lines("RUN") if "pip" in line]
  assert install[install.index("-r") + 1] == "requirements.txt" and not any("==" in word for word in install)
  extras = set(re.search(r"EXTRA=(\w+) for NVIDIA GPUs, (\w+)", (LAUNCH / "Containerfile").read_text()).groups())
  assert extras == {"cuda13", "tpu"}
  known = importlib.metadata.metadata("jax").get_all("Provides-Extra")
  assert extras <= set(known)


def test_lines_in_the_documentation_are_shell():
  text = (ROOT / "docs" / "launching.md").read_text()
  blocks = re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)
  assert len(blocks) >= 4
  for block in blocks:
    subprocess.run(["bash", "-n", "-c", block], check=True)
  for path in set(re.findall(r"launch/[\w.]+|configs/\w+\.py", text)):
    assert (ROOT / path).exists(), path
