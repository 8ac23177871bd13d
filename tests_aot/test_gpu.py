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
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr[-4000:]
  return json.loads(done.stdout.splitlines()[-1])


KERNELS = ["splat_backward", "splat_behind", "splat_forward", "splat_sum"]


@pytest.mark.parametrize("target", TARGETS)
def test_rasterize_and_its_gradient_compile(target):
  program = programs_of(target)["rasterize_and_gradient"]
  kernels = program["kernels"]
  assert sorted(kernels) == KERNELS
  assert all(kernel["arch"] == TARGETS[target] and kernel["spilled"] == 0 for kernel in kernels.values())
  forward, backward = kernels["splat_forward"], kernels["splat_backward"]
  # Colours and depth: two warps draw a tile, one warp goes back through a chunk. As many blocks as a multiprocessor
  # can hold, 32 and 16, must find registers.
  assert forward["threads"] == 64 and forward["registers"] <= 64
  assert kernels["splat_behind"]["threads"] == 256 and kernels["splat_behind"]["registers"] <= 64  # A pixel a thread.
  assert backward["threads"] == 32 and backward["registers"] <= 128
  assert forward["shared"] < 1024 and backward["shared"] == 0  # Sums within a warp need none.
  assert program["float_atomics"] == 0  # Their order, and with it the rounding, would differ from run to run.


def test_frames_spread_over_a_mesh_compile_with_check_vma():
  assert sorted(programs_of("h200")["sharded"]["kernels"]) == KERNELS


@pytest.mark.parametrize("target", TARGETS)
def test_tile_sizes_and_the_most_channels_fit(target):
  programs = programs_of(target)
  for name in ("size4_channels3", "size8_channels3", "size16_channels8", "size32_channels3"):
    kernels = programs[f"pallas_triton_{name}"]["kernels"]
    assert sorted(kernels) == KERNELS, name
    for kernel in kernels.values():
      assert kernel["spilled"] == 0 and kernel["registers"] <= 192 and kernel["shared"] < SHARED, (name, kernel)


@pytest.mark.parametrize("target", TARGETS)
def test_absolute_gradients_fit_with_any_number_of_channels(target):
  backward = {
      channels: programs_of(target)[f"pallas_triton_size16_channels{channels}_absolute"]["kernels"]["splat_backward"]
      for channels in (4, 8, 16, *[32] * (target == "h200"))
  }
  assert all(kernel["spilled"] == 0 and kernel["shared"] == 0 for kernel in backward.values())
  assert max(kernel["registers"] for channels, kernel in backward.items() if channels != 8) <= 128
  assert backward[8]["registers"] <= 192  # The most that are held in registers.
  # Of more channels the code is a loop, so that it takes no longer to compile.
  assert backward[16]["lines"] < backward[8]["lines"]
  assert target != "h200" or backward[32]["lines"] == backward[16]["lines"]


def test_mosaic_form_compiles_for_hopper():
  programs = programs_of("h200")
  assert {"pallas_mosaic_gpu_size16_channels4", "pallas_mosaic_gpu_size32_channels3"} < set(programs)
