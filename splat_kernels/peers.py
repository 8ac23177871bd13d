"""Other rasterizers on the benchmark's scenes, if they are installed and their device is there. Not public."""

import importlib
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from splat_kernels.specs import Spec, make_scene

Made = tuple[dict, dict[str, Callable[[], object]], np.ndarray]  # The fields of `bench.Candidate`.


class NotHere(Exception):
  """The peer cannot run here, and why."""


def make_gsplat(spec: Spec) -> Made:
  """gsplat (CUDA, torch): a batch is one call, as its docs/batch.md has it."""
  gsplat, torch = _import("gsplat"), _import("torch")
  if not torch.cuda.is_available():
    raise NotHere("needs a CUDA device")
  scene = make_scene(spec)
  camera = scene["camera"]
  names = ("means", "quats", "scales", "opacities", "colors")
  arrays = [torch.tensor(scene[name], device="cuda", requires_grad=True) for name in names]
  per_frame = lambda a: torch.tensor(np.broadcast_to(a, (spec.batch, 1, *a.shape)).copy(), device="cuda")
  views, intrinsics = per_frame(camera.world_to_camera), per_frame(camera.intrinsics)

  def draw():
    image, _, _ = gsplat.rasterization(*arrays, views, intrinsics, spec.width, spec.height, packed=False)
    return image[:, 0]

  def forward():
    with torch.no_grad():
      image = draw()
    torch.cuda.synchronize()
    return image

  def forward_backward():
    gradients = torch.autograd.grad((draw() ** 2).sum(), arrays)
    torch.cuda.synchronize()
    return gradients

  row = {"name": f"gsplat {gsplat.__version__}"}
  return row, {"forward": forward, "forward_backward": forward_backward}, forward().cpu().numpy()


def make_splax(spec: Spec) -> Made:
  """splax (CUDA, JAX with Warp): a batch by `jax.vmap`. It takes logarithms, logits and SH of degree 0."""
  splax = _import("splax")
  if jax.default_backend() != "gpu":
    raise NotHere("needs a CUDA device")
  scene = make_scene(spec)
  camera = scene["camera"]
  degree_0 = (scene["colors"] - 0.5) * math.sqrt(4 * math.pi)
  logits = np.log(scene["opacities"] / (1 - scene["opacities"]))
  arrays = [scene["means"], np.log(scene["scales"]), scene["quats"], degree_0[:, :, None], logits]
  arrays = [jnp.asarray(a, jnp.float32) for a in arrays]

  def draw_frame(*arrays):
    return splax.render(
        *arrays,
        viewmat=jnp.asarray(camera.world_to_camera),
        background=jnp.zeros(3),
        img_shape=(spec.height, spec.width),
        f=(float(camera.intrinsics[0, 0]), float(camera.intrinsics[1, 1])),
    )[0]

  draw = jax.vmap(draw_frame)
  forward = jax.jit(draw)
  gradient = jax.jit(jax.grad(lambda *arrays: jnp.sum(draw(*arrays) ** 2), argnums=tuple(range(5))))
  parts = {
      "forward": lambda: jax.block_until_ready(forward(*arrays)),
      "forward_backward": lambda: jax.block_until_ready(gradient(*arrays)),
  }
  return {"name": "splax"}, parts, np.asarray(forward(*arrays))


def _import(name: str):
  try:
    return importlib.import_module(name)
  except ImportError as e:
    raise NotHere(f"not installed ({e})") from e


PEERS: dict[str, Callable[[Spec], Made]] = {"gsplat": make_gsplat, "splax": make_splax}
