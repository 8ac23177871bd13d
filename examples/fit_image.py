"""Fits 2D Gaussians to a picture: python -m examples.fit_image [--image=photo.jpg] [--out=fit.png]

No camera and no third dimension: the Gaussians are made on the image plane, as `splat_kernels.Projected`, and drawn by
`splat_kernels.composite`, which is what stands behind `rasterize`. Takes under a minute on two CPU cores.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from splat_kernels import Config, Projected, adam, composite

RATES = {"means": 0.3, "log_scales": 0.03, "angles": 0.03, "opacity_logits": 0.03, "colors": 0.01, "depths": 0.0}


def draw_target(size: int) -> np.ndarray:
  """A picture with edges, gradients and thin lines, (size, size, 3) in [0, 1]."""
  y, x = (np.mgrid[:size, :size] + 0.5) / size
  radius, angle = np.hypot(x - 0.5, y - 0.5), np.arctan2(y - 0.5, x - 0.5)
  sky = np.stack([0.9 - 0.6 * y, 0.6 - 0.2 * y, 0.4 + 0.5 * y], axis=-1)
  petals = radius < 0.3 + 0.1 * np.cos(7 * angle)
  image = np.where(petals[..., None], np.stack([0.9 - radius, 0.2 + radius, 0.3 + 0 * x], axis=-1), sky)
  image = np.where((radius < 0.12)[..., None], [0.95, 0.8, 0.2], image)
  return np.where((np.abs((x + y) % 0.25 - 0.125) < 0.004)[..., None], [0.1, 0.1, 0.15], image)


def init_params(random: np.random.Generator, count: int, target: np.ndarray) -> dict[str, jax.Array]:
  height, width, _ = target.shape
  means = random.uniform(size=(count, 2)) * [width, height]
  x, y = means.astype(int).T
  params = {
      "means": means,  # Pixels.
      "log_scales": np.full((count, 2), np.log(0.6 * np.sqrt(width * height / count))),
      "angles": random.uniform(0, np.pi, count),
      "opacity_logits": np.zeros(count),
      "colors": target[y, x],
      "depths": random.uniform(1, 2, count),  # The order in which they lie over each other; not trained.
  }
  return {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}


def project(params: dict[str, jax.Array], config: Config) -> Projected:
  """A projector of one's own: what `Projected` asks for, from Gaussians that lie on the image plane."""
  cos, sin = jnp.cos(params["angles"]), jnp.sin(params["angles"])
  a, b = jnp.exp(2 * params["log_scales"]).T + config.low_pass  # Variances along the axes.
  xx, xy, yy = a * cos**2 + b * sin**2, (a - b) * cos * sin, a * sin**2 + b * cos**2
  opacities = jax.nn.sigmoid(params["opacity_logits"])
  level = 2 * jnp.log(jnp.maximum(opacities / config.alpha_min, 1))  # Of the contour at which alpha is alpha_min.
  extents = jax.lax.stop_gradient(jnp.sqrt(level[:, None] * jnp.stack([xx, yy], axis=-1)))
  return Projected(
      means2d=params["means"],
      conics=jnp.stack([yy, -xy, xx], axis=-1) / (a * b)[:, None],
      depths=params["depths"],
      opacities=opacities,
      extents=extents,
      radii=jnp.ceil(jnp.max(extents, axis=-1)).astype(jnp.int32),
  )


def psnr(image: jax.Array, target: jax.Array) -> float:
  return float(-10 * jnp.log10(jnp.mean((jnp.clip(image, 0, 1) - target) ** 2)))


def main(argv: list[str] | None = None) -> float:
  """Returns the PSNR in dB."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--image", help="picture to fit; one is drawn if there is none")
  parser.add_argument("--size", type=int, default=256, help="of the longer side, pixels")
  parser.add_argument("--gaussians", type=int, default=2000)
  parser.add_argument("--pairs", type=int, default=25_000, help="room for (Gaussian, tile) pairs")
  parser.add_argument("--steps", type=int, default=500)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--out", default="fit_image.png", help="target and fit side by side")
  args = parser.parse_args(argv)

  target = draw_target(args.size)
  if args.image:
    try:
      picture = Image.open(args.image).convert("RGB")
    except OSError as e:
      parser.error(f"--image={args.image}: {e}")
    picture.thumbnail((args.size, args.size))
    target = np.asarray(picture) / 255
  target = jnp.asarray(target, jnp.float32)
  height, width, _ = target.shape
  params = init_params(np.random.default_rng(args.seed), args.gaussians, np.asarray(target))
  config = Config(max_intersections=args.pairs)

  def loss(params):
    image = composite(project(params, config), params["colors"], width=width, height=height, config=config).image
    return jnp.mean(jnp.abs(image - target)), image

  @jax.jit
  def step(params, state, share):
    (_, image), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    everyone = jnp.ones(args.gaussians, bool)
    rates = {name: share * rate for name, rate in RATES.items()}
    return *adam.selective_adam(params, gradients, state, everyone, rates=rates), image

  state, start = adam.init_state(params), time.time()
  for i in range(args.steps):
    params, state, image = step(params, state, 0.1 ** (i / args.steps))
    if i % 100 == 0 or i == args.steps - 1:
      print(f"step {i}: PSNR {psnr(image, target):.2f} dB, {time.time() - start:.1f} s")
      if not jnp.all(jnp.isfinite(image)):  # What an image is whose list was full.
        parser.exit(1, f"--pairs={args.pairs} is too small for this picture\n")
  both = jnp.concatenate([target, jnp.clip(image, 0, 1)], axis=1)
  Image.fromarray(np.asarray(both * 255 + 0.5, np.uint8)).save(args.out)
  return psnr(image, target)


if __name__ == "__main__":
  main()
