"""Fits 3D Gaussians to posed pictures of a scene: python -m examples.fit_scene [--density=adaptive|mcmc|none]

The pictures are drawn from a hidden set of Gaussians, a torus knot over a chequered floor, by the library itself; the
fit begins with few Gaussians at random places and grows. Every eighth view is held out. A few minutes on two CPU cores.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from splat_kernels import Camera, Config, adam, densification, rasterize

RATES = {"means": 4e-3, "quats": 5e-3, "log_scales": 1e-2, "opacity_logits": 5e-2, "colors": 1e-2}
EVERY = 50  # Steps between changes of the number of Gaussians.


def make_scene(random: np.random.Generator) -> dict[str, np.ndarray]:
  """Arguments of `rasterize`: the hidden Gaussians."""
  t = np.linspace(0, 2 * np.pi, 3000)
  radius = 0.6 + 0.25 * np.cos(3 * t)
  knot = np.stack([radius * np.cos(2 * t), radius * np.sin(2 * t), 0.25 * np.sin(3 * t)], axis=-1)
  knot += 0.05 * random.normal(size=knot.shape)
  floor = np.concatenate([random.uniform(-1.2, 1.2, (3000, 2)), np.full((3000, 1), -0.45)], axis=-1)
  chequers = np.where(np.sum(np.floor(floor[:, :2] / 0.3), axis=-1) % 2, 0.85, 0.25)[:, None] * [1, 0.95, 0.9]
  means = np.concatenate([knot, floor])
  return {
      "means": means,
      "quats": np.concatenate([random.normal(size=(3000, 4)), np.tile([1, 0, 0, 0], (3000, 1))]),
      "scales": random.uniform(0.015, 0.035, (6000, 3)) * np.where(np.arange(6000)[:, None] < 3000, 1, [1, 1, 0.1]),
      "opacities": np.full(6000, 0.9),
      "colors": np.concatenate([0.5 + 0.4 * np.cos(t[:, None] + [0, 2, 4]), chequers]),
  }


def orbit(count: int, size: int) -> Camera:
  """Cameras on a spiral above the scene that look at its middle, as a batch."""
  poses = []
  for share in (np.arange(count) + 0.5) / count:
    angle, height = 2 * np.pi * 5 * share, 0.3 + 0.9 * share
    place = 2.6 * np.array([np.cos(angle) * np.cos(height), np.sin(angle) * np.cos(height), np.sin(height)])
    forward = -place / np.linalg.norm(place)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    poses.append(np.block([[rotation, -rotation @ place[:, None]], [np.zeros((1, 3)), np.ones((1, 1))]]))
  intrinsics = np.array([[1.2 * size, 0, size / 2], [0, 1.2 * size, size / 2], [0, 0, 1]])
  return Camera(np.array(poses, np.float32), intrinsics.astype(np.float32), size, size)


def draw(params, live, camera: Camera, config: Config, **offsets):
  opacities = jnp.where(live, jax.nn.sigmoid(params["opacity_logits"]), 0)
  scales, colors = jnp.exp(params["log_scales"]), jax.nn.sigmoid(params["colors"])
  return rasterize(params["means"], params["quats"], scales, opacities, colors, camera, config=config, **offsets)


def change_density(way: str, key, params, state, live, statistics):
  """Prunes and grows; optimizer moments of new Gaussians are forgotten."""
  opacities = jax.nn.sigmoid(params["opacity_logits"])
  alive = live & (opacities > 0.005)
  if way == "mcmc":  # What is transparent moves, and a fifth more come.
    born = ~live & (jnp.cumsum(~live) <= jnp.sum(live) // 5)
    params, _, fresh = densification.refill(key, params, born | (live & ~alive), jnp.where(alive, opacities, 0))
    return params, adam.forget_moments(state, fresh), live | born
  large = jnp.max(params["log_scales"], axis=-1) > np.log(0.03)
  pull = statistics.mean_gradient
  wanted = alive & (pull > 4e-4)
  masks = {"duplicated": wanted & ~large, "split": wanted & large}
  params, source, fresh = densification.grow(key, params, alive, **masks, priority=pull)
  return params, adam.forget_moments(state, fresh), alive[source]


def main(argv: list[str] | None = None) -> tuple[float, int]:
  """Returns the PSNR of held-out views in dB, and the number of Gaussians."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--density", choices=["adaptive", "mcmc", "none"], default="adaptive")
  parser.add_argument("--size", type=int, default=128, help="of the pictures, pixels")
  parser.add_argument("--views", type=int, default=48)
  parser.add_argument("--start", type=int, default=1000, help="Gaussians at the beginning")
  parser.add_argument("--capacity", type=int, default=4000, help="Gaussians at most")
  parser.add_argument("--pairs", type=int, default=32 * 1024, help="room for (Gaussian, tile) pairs of a frame")
  parser.add_argument("--steps", type=int, default=1500)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--out", default="fit_scene.png", help="held-out views above, the fit below")
  args = parser.parse_args(argv)
  if args.start > args.capacity:
    parser.error(f"--start={args.start} is more than --capacity={args.capacity}")

  random, key = np.random.default_rng(args.seed), jax.random.key(args.seed)
  scene, cameras = make_scene(random), orbit(args.views, args.size)
  config = Config(with_depth=False, max_intersections=args.pairs)
  pictures = rasterize(**scene, camera=cameras, config=config).image
  held_out = np.arange(args.views) % 8 == 4
  view = lambda i: Camera(cameras.world_to_camera[i], cameras.intrinsics, args.size, args.size)

  count = args.capacity
  params = {
      "means": random.uniform([-1.2, -1.2, -0.5], [1.2, 1.2, 0.4], (count, 3)),
      "quats": random.normal(size=(count, 4)),
      "log_scales": np.full((count, 3), np.log(0.06)),
      "opacity_logits": np.full(count, -2.0),
      "colors": np.zeros((count, 3)),
  }
  params = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}
  live, state = jnp.arange(count) < args.start, adam.init_state(params)
  statistics = densification.no_statistics(count)

  @jax.jit
  def step(params, state, live, statistics, picture, pose, key, share):
    camera = Camera(pose, cameras.intrinsics, args.size, args.size)

    def loss(params, probe):
      output = draw(params, live, camera, config, means2d_abs_offset=probe)
      few = jnp.mean(jnp.where(live, jax.nn.sigmoid(params["opacity_logits"]), 0))
      return jnp.mean(jnp.abs(output.image - picture)) + 0.003 * few, output

    probe = jnp.zeros((count, 2))
    gradients, output = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, probe)
    statistics = densification.add_frames(statistics, gradients[1][None], output.radii[None], args.size, args.size)
    rates = RATES | {"means": share * RATES["means"]}
    params, state = adam.selective_adam(params, gradients[0], state, output.radii > 0, rates=rates)
    if args.density == "mcmc":
      scales, opacities = jnp.exp(params["log_scales"]), jax.nn.sigmoid(params["opacity_logits"])
      means = densification.inject_noise(key, params["means"], params["quats"], scales, opacities, 50 * rates["means"])
      params |= {"means": means}
    return params, state, statistics

  change, start = jax.jit(change_density, static_argnames="way"), time.time()
  order = random.permutation(np.flatnonzero(~held_out))
  for i in range(args.steps):
    number, step_key = order[i % len(order)], jax.random.fold_in(key, i)
    share = 0.02 ** (i / args.steps)
    params, state, statistics = step(
        params, state, live, statistics, pictures[number], cameras.world_to_camera[number], step_key, share
    )
    if args.density != "none" and i % EVERY == EVERY - 1 and i < 0.8 * args.steps:
      params, state, live = change(args.density, step_key, params, state, live, statistics)
      statistics = densification.no_statistics(count)
    if i % 250 == 0:
      print(f"step {i}: {int(live.sum())} Gaussians, {time.time() - start:.1f} s")
      if not jnp.all(jnp.isfinite(params["means"])):  # An image whose list was full is NaN, and so is its gradient.
        parser.exit(1, f"--pairs={args.pairs} is too small for these pictures\n")
  images = jnp.clip(draw(params, live, view(held_out), config).image, 0, 1)
  error = jnp.mean((images - jnp.clip(pictures[held_out], 0, 1)) ** 2, axis=(1, 2, 3))
  psnr = float(jnp.mean(-10 * jnp.log10(error)))
  print(f"{int(live.sum())} Gaussians, {held_out.sum()} held-out views: PSNR {psnr:.2f} dB, {time.time() - start:.1f} s")
  rows = [np.concatenate(list(x[:4]), axis=1) for x in (np.clip(pictures[held_out], 0, 1), np.asarray(images))]
  Image.fromarray((np.concatenate(rows) * 255 + 0.5).astype(np.uint8)).save(args.out)
  return psnr, int(live.sum())


if __name__ == "__main__":
  main()
