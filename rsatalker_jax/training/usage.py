"""What a stage has cost so far: <workdir>/<stage>/usage.json."""

import json
import pathlib
import resource
import sys

import jax

from rsatalker_jax.files import whole_file


def record(folder: str, steps: int, seconds: float) -> None:
  """Adds what one start of a stage took to what those before it did.

  Args:
    folder: the stage's.
    steps: that the stage has taken in all.
    seconds: of this start: compilation, waiting for data and scoring on the way included. Those of a start that was killed
      are not known.

  The file holds "seconds" and "steps", "starts" that were counted, "peak_memory_bytes" of the host's process, stages that
  it ran before this one included, and, where the devices tell, "peak_device_memory_bytes" of the fullest one.
  """
  if jax.process_index() != 0:
    return
  path = pathlib.Path(folder) / "usage.json"
  try:
    before = json.loads(path.read_text())
  except (OSError, ValueError):
    before = {}
  # Kilobytes but on macOS.
  memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
  usage = {
      "seconds": before.get("seconds", 0.0) + seconds,
      "steps": steps,
      "starts": before.get("starts", 0) + 1,
      "peak_memory_bytes": max(before.get("peak_memory_bytes", 0), memory),
  }
  on_devices = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
  if any(on_devices):
    usage["peak_device_memory_bytes"] = max(before.get("peak_device_memory_bytes", 0), *on_devices)
  with whole_file(path) as file:
    file.write((json.dumps(usage, indent=2) + "\n").encode())
