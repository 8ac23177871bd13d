"""Starts the programs of this project as several processes of one run, on this machine, with a CPU device each."""

import json
import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence

ROOT = pathlib.Path(__file__).parents[1]
# A machine that is busy with other tests is no reason to fail; a hang ends here.
PATIENCE = 300


def write_config(path: pathlib.Path, config) -> str:
  """Writes a config as a file that --config takes; returns the flag."""
  values = json.dumps(config.to_dict())
  path.write_text(f"import json\nfrom ml_collections import ConfigDict\n\ndef get_config():\n  return ConfigDict(json.loads({values!r}))\n")
  return f"--config={path}"


def free_port() -> int:
  with socket.socket() as found:
    found.bind(("localhost", 0))
    return found.getsockname()[1]


def start(
    count: int,
    arguments: Sequence[str],
    *,
    each: Mapping[int, Sequence[str]] = {},
    folders: Sequence[pathlib.Path] = (),
    environment: Mapping[str, str] = {},
) -> list[subprocess.Popen]:
  """Starts `python arguments` in `count` processes that find each other; one alone gets no flags of a cluster.

  Args:
    each: further arguments of some, by number.
    folders: the working directory of each; the project's if empty.
  """
  port, processes = free_port(), []
  for number in range(count):
    cluster = [f"--coordinator=localhost:{port}", f"--process={number}", f"--processes={count}"] if count > 1 else []
    command = [sys.executable, *arguments, *cluster, *each.get(number, ())]
    processes.append(
        subprocess.Popen(
            command,
            cwd=folders[number] if folders else ROOT,
            env=os.environ | dict(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    )
  return processes


def finish(processes: Sequence[subprocess.Popen], seconds: float = PATIENCE) -> list[tuple[int, str, str]]:
  """Waits for processes to end: exit status, stdout and stderr of each. Kills all if one does not."""
  try:
    texts = [process.communicate(timeout=seconds) for process in processes]
    return [(process.returncode, *text) for process, text in zip(processes, texts)]
  finally:
    for process in processes:
      process.kill()
