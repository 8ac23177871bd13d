"""Numbers of gsplat 1.5.3's own formulas, for test_gsplat_parity.py: `python tests/splat_kernels/gsplat_numbers.py`.

It writes gsplat_numbers.npz beside itself and needs what requirements-oracles.txt names, and g++. Projection by Jacobian
and SH are gsplat's torch code with torch's gradients. Compositing is written here after `accumulate` there, which itself
needs CUDA. The unscented transform, distortion and rolling shutter are gsplat's C++ (Cameras.cuh), compiled for the CPU.
Inputs come from a seed, by a generator that numpy keeps as it is.
"""

import ctypes
import importlib.util
import pathlib
import subprocess
import tempfile

import numpy as np

PATH = pathlib.Path(__file__).with_suffix(".npz")
WIDTH, HEIGHT, NUM = 32, 24, 12
MODELS = {"pinhole": "pinhole", "orthographic": "ortho", "fisheye": "fisheye"}  # Ours, gsplat's.
GEOMETRY = ("means", "quats", "scales", "pose", "intrinsics")
DEGREES = range(5)
# Model, distortion in OpenCV's order, shutter. gsplat takes one time for a whole row of pixels, which the transform blows
# up: rolling shutters have an image of FINE times as many rows.
FINE = 1000
UNSCENTED = {
    "pinhole": ("pinhole", None, "global"),
    "radial": ("pinhole", (-0.2, 0.1, 0.01, -0.02, 0.03, 0.05, -0.02, 0.01), "global"),
    "fisheye": ("fisheye", (0.05, -0.02, 0.01, -0.003), "global"),
    "top_to_bottom": ("pinhole", None, "top_to_bottom"),
    "left_to_right": ("fisheye", (0.05, -0.02, 0.01, -0.003), "left_to_right"),
}


def make_inputs() -> dict[str, np.ndarray]:
  """A scene all of which lies in the image, float32; `weights` are those of random linear functions of the outputs."""
  rng = np.random.RandomState(3)
  turn = lambda a: np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
  tilt = lambda a: np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
  pose, end = np.eye(4), np.eye(4)
  pose[:3, :3], end[:3, :3] = turn(0.3), tilt(0.04) @ turn(0.35)
  pose[:3, 3], end[:3, 3] = (0.1, -0.05, 2.0), (0.12, -0.02, 1.98)
  arrays = {
      "means": rng.uniform(-0.5, 0.5, (NUM, 3)),
      "quats": rng.normal(size=(NUM, 4)),
      "scales": rng.uniform(0.02, 0.25, (NUM, 3)),
      "opacities": rng.uniform(0.3, 1.0, NUM),
      "coefficients": rng.normal(size=(NUM, 25, 3)) * 0.4,
      "background": rng.uniform(size=3),
      "pose": pose,
      "pose_end": end,
      "intrinsics": np.array([[28.0, 0, 15.0], [0, 26.0, 13.0], [0, 0, 1]]),
      "weights_means2d": rng.normal(size=(NUM, 2)),
      "weights_conics": rng.normal(size=(NUM, 3)) * 10,  # They are small.
      "weights_depths": rng.normal(size=NUM),
      "weights_compensations": rng.normal(size=NUM),
      "weights_colors": rng.normal(size=(NUM, 3)),
      "weights_image": rng.normal(size=(HEIGHT, WIDTH, 3)),
      "weights_alpha": rng.normal(size=(HEIGHT, WIDTH)),
  }
  return {name: array.astype(np.float32) for name, array in arrays.items()}


def make_numbers() -> dict[str, np.ndarray]:
  """Values and gradients by gsplat's torch formulas."""
  import torch
  from gsplat.cuda import _torch_impl as formulas

  torch.set_num_threads(1)
  given = make_inputs()
  leaves = lambda *names: {name: torch.tensor(given[name], requires_grad=True) for name in names}
  constant = {name: torch.tensor(value) for name, value in given.items()}
  numbers = {}

  def store(case, outputs, inputs):
    loss = sum((constant[f"weights_{name}"] * value).sum() for name, value in outputs.items())
    loss.backward()
    numbers.update({f"{case}/{name}": value.detach().numpy() for name, value in outputs.items()})
    numbers.update({f"{case}/d_{name}": value.grad.numpy() for name, value in inputs.items() if value.grad is not None})

  def project(inputs, model):
    covariances, _ = formulas._quat_scale_to_covar_preci(inputs["quats"], inputs["scales"], compute_preci=False)
    cameras = inputs["pose"][None], inputs["intrinsics"][None]
    radii, means2d, depths, conics, compensations = formulas._fully_fused_projection(
        inputs["means"], covariances, *cameras, WIDTH, HEIGHT, calc_compensations=True, camera_model=model
    )
    assert torch.all(radii > 0)
    return {"means2d": means2d[0], "conics": conics[0], "depths": depths[0], "compensations": compensations[0]}

  for name, model in MODELS.items():
    inputs = leaves(*GEOMETRY)
    store(name, project(inputs, model), inputs)

  def colors(inputs, degree):
    centre = -inputs["pose"][:3, :3].T @ inputs["pose"][:3, 3]
    return torch.clamp_min(formulas._spherical_harmonics(degree, inputs["means"] - centre, inputs["coefficients"]) + 0.5, 0)

  for degree in DEGREES:
    inputs = leaves("means", "coefficients", "pose")
    store(f"sh{degree}", {"colors": colors(inputs, degree)}, inputs)
    if degree != max(DEGREES):
      del numbers[f"sh{degree}/d_coefficients"]  # The basis times the weights, as in the last.

  inputs = leaves(*GEOMETRY, "opacities", "coefficients", "background")
  projected = project(inputs, "pinhole")
  image, alpha = _composite(projected, inputs["opacities"], colors(inputs, 0), inputs["background"])
  store("image", {"image": image, "alpha": alpha}, inputs)
  return numbers


def _composite(projected, opacities, colors, background):
  """Front to back, pixel by pixel: gsplat 1.5's constants, torch's gradients."""
  import torch

  y, x = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
  image, transmittance = torch.zeros(HEIGHT, WIDTH, 3), torch.ones(HEIGHT, WIDTH)
  open_pixels = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
  for i in torch.argsort(projected["depths"]).tolist():
    dx, dy = x - projected["means2d"][i, 0], y - projected["means2d"][i, 1]
    xx, xy, yy = projected["conics"][i]
    alpha = torch.clamp_max(opacities[i] * torch.exp(-0.5 * (xx * dx**2 + yy * dy**2) - xy * dx * dy), 0.999)
    behind = transmittance * (1 - alpha)
    seen = open_pixels & (alpha >= 1 / 255)
    open_pixels = open_pixels & ~(seen & (behind <= 1e-4))
    seen = seen & open_pixels
    image = image + torch.where(seen, transmittance * alpha, 0.0)[..., None] * colors[i]
    transmittance = torch.where(seen, behind, transmittance)
  return image + transmittance[..., None] * background, 1 - transmittance


_HARNESS = r"""
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#define __device__
#define __host__
#define __forceinline__ inline
#include <glm/glm.hpp>
#include <glm/gtc/type_ptr.hpp>
using glm::length;
using std::max;
using std::min;
#include "Cameras.cuh"

template <class Model>
void project(int shutter, int num, const float* means, const float* quats, const float* scales, const float* start,
             const float* end, const float* k, int width, int height, const float* radial, const float* tangential,
             float* out) {
  typename Model::Parameters parameters = {};
  parameters.resolution = {(uint32_t)width, (uint32_t)height};
  parameters.shutter_type = (ShutterType)shutter;
  parameters.focal_length = {k[0], k[4]};
  parameters.principal_point = {k[2], k[5]};
  if constexpr (requires { parameters.radial_coeffs; })
    std::copy(radial, radial + parameters.radial_coeffs.size(), parameters.radial_coeffs.begin());
  if constexpr (requires { parameters.tangential_coeffs; })
    std::copy(tangential, tangential + 2, parameters.tangential_coeffs.begin());
  Model model(parameters);
  RollingShutterParameters poses(start, end);
  for (int i = 0; i < num; ++i, out += 6) {
    auto quat = glm::normalize(glm::fquat{quats[4 * i], quats[4 * i + 1], quats[4 * i + 2], quats[4 * i + 3]});
    auto image = world_gaussian_to_image_gaussian_unscented_transform_shutter_pose(
        model, poses, UnscentedTransformParameters{}, glm::make_vec3(means + 3 * i), glm::make_vec3(scales + 3 * i), quat);
    auto c = image.covariance;
    float row[] = {image.mean.x, image.mean.y, c[0][0], c[0][1], c[1][1], float(image.valid)};
    std::copy_n(row, 6, out);
  }
}

#define ARGUMENTS shutter, num, means, quats, scales, start, end, k, width, height, radial, tangential, out
extern "C" void run(int model, int shutter, int num, const float* means, const float* quats, const float* scales,
                    const float* start, const float* end, const float* k, int width, int height, const float* radial,
                    const float* tangential, float* out) {
  if (model == 0) project<PerfectPinholeCameraModel>(ARGUMENTS);
  if (model == 1) project<OpenCVPinholeCameraModel<>>(ARGUMENTS);
  if (model == 2) project<OpenCVFisheyeCameraModel<>>(ARGUMENTS);
}
"""


def make_unscented_numbers() -> dict[str, np.ndarray]:
  """Means (x, y) and covariances (xx, xy, yy) in the image by gsplat's C++, in float32, without low-pass."""
  cuda = pathlib.Path(importlib.util.find_spec("gsplat").origin).parent / "cuda"
  with tempfile.TemporaryDirectory() as folder:
    source, library = pathlib.Path(folder, "harness.cpp"), pathlib.Path(folder, "harness.so")
    source.write_text(_HARNESS)
    include = ["-I", cuda / "include", "-I", cuda / "csrc/third_party/glm"]
    subprocess.run(["g++", "-std=c++20", "-O1", "-w", "-shared", "-fPIC", *include, source, "-o", library], check=True)
    run = ctypes.CDLL(str(library)).run
  given = make_inputs()
  pointer = lambda a: a.ctypes.data_as(ctypes.c_void_p)
  numbers = {}
  shutters = ("top_to_bottom", "left_to_right", "bottom_to_top", "right_to_left", "global")  # gsplat's numbers.
  for name, (model, distortion, shutter) in UNSCENTED.items():
    radial, tangential = np.zeros(6, np.float32), np.zeros(2, np.float32)
    if model == "fisheye":
      radial[:4] = distortion
    elif distortion is not None:
      k = np.float32(distortion)
      radial[:], tangential[:] = k[[0, 1, 4, 5, 6, 7]], k[2:4]
    out = np.zeros((NUM, 6), np.float32)
    end, fine = (given["pose"], 1) if shutter == "global" else (given["pose_end"], FINE)
    intrinsics = given["intrinsics"] * np.float32([[fine], [fine], [1]])
    arrays = [pointer(a) for a in (given["means"], given["quats"], given["scales"], given["pose"], end, intrinsics)]
    kind, size = 2 if model == "fisheye" else 0 if distortion is None else 1, (WIDTH * fine, HEIGHT * fine)
    run(kind, shutters.index(shutter), NUM, *arrays, *size, pointer(radial), pointer(tangential), pointer(out))
    assert np.all(out[:, 5] == 1), name
    numbers[f"unscented/{name}"] = out[:, :5]
  return numbers


if __name__ == "__main__":
  np.savez_compressed(PATH, **make_numbers(), **make_unscented_numbers())
  print(f"{PATH}: {PATH.stat().st_size} bytes")
