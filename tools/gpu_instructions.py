"""Instructions of the GPU kernels' inner loops, by the GPU's own assembler: tools/gpu_instructions.py [TARGET]

TARGET is h200 or a100. Needs no GPU, but requirements-aot.txt and nvidia-cuda-nvdisasm. Prints, for RGB and depth on tiles of 16
pixels, the instructions that all warps of a tile issue per Gaussian, and the registers of a thread.
"""

import os
import pathlib
import re
import subprocess
import sys
import tempfile

import nvidia

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOOLKIT = pathlib.Path(next(iter(nvidia.__path__))) / "cu13"
CHANNELS = 4


def loops(sass: str) -> list[int]:
  """Instructions between each backward branch and its target, both included."""
  labels, count, found = {}, 0, []
  for line in sass.splitlines():
    if label := re.match(r"\s*(\.L_x_\d+):", line):
      labels[label[1]] = count
    elif re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+\S", line):
      count += 1
      branch = re.search(r"BRA.*\((\.L_x_\d+)\)", line)
      if branch and branch[1] in labels:
        found.append(count - labels[branch[1]])
  return found


def main() -> None:
  target = sys.argv[1] if len(sys.argv) > 1 else "h200"
  with tempfile.TemporaryDirectory() as folder:
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"--xla_gpu_cuda_data_dir={TOOLKIT} --xla_dump_to={folder} --xla_dump_emitter_re=ptx"
    sys.path[:0] = [str(ROOT), str(ROOT / "tests_aot")]
    import compile_for_gpu  # After the flags.

    from splat_kernels.pallas_triton import UNROLL

    compile_for_gpu.compile_walks(compile_for_gpu.find_device(target), 16, CHANNELS)
    kernels = next(iter(compile_for_gpu.read_programs(pathlib.Path(folder)).values()))["kernels"]
    for path in sorted(pathlib.Path(folder).glob("*.cubin")):
      sass = subprocess.run([TOOLKIT / "bin/nvdisasm", "-c", path], capture_output=True, text=True, check=True).stdout
      name = re.search(r"\.text\.(splat_\w+):", sass)[1]
      kernel, warps = kernels[name], kernels[name]["threads"] // 32
      # The innermost loop comes first in the code: forward it takes UNROLL Gaussians, backward one, between chunks eight
      # chunks, as the compiler writes it out, and in sums a Gaussian's slots 32 at a time.
      each = loops(sass)[0] / {"splat_forward": UNROLL, "splat_behind": 8}.get(name, 1)
      what = {"splat_behind": "chunk and tile", "splat_sum": "32 slots"}.get(name, "Gaussian and tile")
      print(f"{name}: {each * warps:.0f} instructions per {what}, {warps} warps, {kernel['registers']} registers")


if __name__ == "__main__":
  main()
