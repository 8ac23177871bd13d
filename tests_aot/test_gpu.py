"""The GPU kernels compile for Hopper and Ampere, in few enough registers and little shared memory."""

import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import nvidia
import pytest

# Per multiprocessor: both have 65536 registers and hold at most 2048 threads.
TARGETS = {"h200": "sm_90a", "a100": "sm_80"}
SHARED = 48 * 1024  # Bytes a kernel has without asking for more.


@functools.cache
def programs_of(target: str) -> dict:
  here = pathlib.Path(__file__).parent
  with tempfile.TemporaryDirectory() as dumps:
    toolkit = pathlib.Path(next(iter(nvidia.__path__))) / "cu13"
    flags = f"--xla_gpu_cuda_data_dir={toolkit} --xla_dump_to={dumps} --xla_dump_emitter_re=ptx"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(here.parent)}
    command = [sys.executable, here / "compile_for_gpu.py", target, dumps]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-4000:]
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("target", TARGETS)
def test_rasterize_and_its_gradient_compile(target):
  program = programs_of(target)["rasterize_and_gradient"]
  kernels = program["kernels"]
  assert sorted(kernels) == ["splat_backward", "splat_forward", "splat_sum"]
  assert all(kernel["arch"] == TARGETS[target] and kernel["spilled"] == 0 for kernel in kernels.values())
  forward, backward = kernels["splat_forward"], kernels["splat_backward"]
  # Colours and depth: two warps draw a tile, one warp goes back through a chunk. As many blocks as a multiprocessor
  # can hold, 32 and 16, must find registers.
  assert forward["threads"] == 64 and forward["registers"] <= 64
  assert backward["threads"] == 32 and backward["registers"] <= 128
  assert forward["shared"] < 1024 and backward["shared"] == 0  # Sums within a warp need none.
  assert program["float_atomics"] == 0  # Their order, and with it the rounding, would differ from run to run.


@pytest.mark.parametrize("target", TARGETS)
def test_tile_sizes_and_the_most_channels_fit(target):
  programs = programs_of(target)
  for name in ("size4_channels3", "size8_channels3", "size16_channels8", "size32_channels3"):
    pair = programs[f"walks_{name}"]["kernels"]
    assert sorted(pair) == ["splat_backward", "splat_forward"], name
    for kernel in pair.values():
      assert kernel["spilled"] == 0 and kernel["registers"] <= 192 and kernel["shared"] < SHARED, (name, kernel)
