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
def kernels_of(target: str) -> dict:
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
  kernels = kernels_of(target)["rasterize_and_gradient"]
  forward, backward = kernels["splat_forward"], kernels["splat_backward"]
  assert forward["arch"] == backward["arch"] == TARGETS[target]
  assert forward["spilled"] == backward["spilled"] == 0
  # Colours and depth: two warps draw a tile, one warp goes back through a chunk. As many blocks as a multiprocessor
  # can hold, 32 and 16, must find registers.
  assert forward["threads"] == 64 and forward["registers"] <= 64
  assert backward["threads"] == 32 and backward["registers"] <= 128
  assert forward["shared"] < 1024 and backward["shared"] == 0  # Sums within a warp need none.


@pytest.mark.parametrize("target", TARGETS)
def test_tile_sizes_and_the_most_channels_fit(target):
  kernels = {name: value for name, value in kernels_of(target).items() if name.startswith("walks_")}
  assert sorted(kernels) == ["walks_size16_channels8", "walks_size32_channels3", "walks_size4_channels3", "walks_size8_channels3"]
  for name, pair in kernels.items():
    assert sorted(pair) == ["splat_backward", "splat_forward"], name
    for kernel in pair.values():
      assert kernel["spilled"] == 0 and kernel["registers"] <= 192 and kernel["shared"] < SHARED, (name, kernel)
