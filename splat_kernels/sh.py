"""Real spherical harmonics up to degree 4: colour that changes with the direction of view."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

MAX_DEGREE = 4


def num_coefficients(degree: int) -> int:
  """Number of basis functions up to and including `degree`."""
  return (degree + 1) ** 2


def sh_basis(degree: int, directions: Float[Array, "N 3"]) -> Float[Array, "N K"]:
  """Values of the real, orthonormal basis in the order and with the signs of 3D Gaussian splatting.

  Order: degree by degree, m = -l … l; the Condon-Shortley phase is kept, so degree 1 is (-y, z, -x).

  Args:
    degree: 0 to 4.
    directions: unit vectors.
  """
  return jnp.stack(_basis(degree, directions), axis=-1)


def _basis(degree: int, directions) -> list:
  x, y, z = directions[..., 0], directions[..., 1], directions[..., 2]
  basis = [jnp.full_like(x, 0.28209479177387814)]  # sqrt(1 / 4 pi)
  if degree >= 1:
    c = 0.4886025119029199  # sqrt(3 / 4 pi)
    basis += [-c * y, c * z, -c * x]
  if degree >= 2:
    c = 1.0925484305920792  # sqrt(15 / 4 pi)
    basis += [
        c * x * y,
        -c * y * z,
        0.31539156525252005 * (3 * z * z - 1),  # sqrt(5 / 16 pi)
        -c * x * z,
        0.5462742152960396 * (x * x - y * y),
    ]
  if degree >= 3:
    basis += [
        -0.5900435899266435 * y * (3 * x * x - y * y),  # sqrt(35 / 32 pi)
        2.890611442640554 * x * y * z,  # sqrt(105 / 4 pi)
        -0.4570457994644658 * y * (5 * z * z - 1),  # sqrt(21 / 32 pi)
        0.3731763325901154 * z * (5 * z * z - 3),  # sqrt(7 / 16 pi)
        -0.4570457994644658 * x * (5 * z * z - 1),
        1.445305721320277 * z * (x * x - y * y),  # sqrt(105 / 16 pi)
        -0.5900435899266435 * x * (x * x - 3 * y * y),
    ]
  if degree >= 4:
    basis += [
        2.5033429417967046 * x * y * (x * x - y * y),  # sqrt(315 / 16 pi)
        -1.7701307697799304 * y * z * (3 * x * x - y * y),  # sqrt(315 / 32 pi)
        0.9461746957575601 * x * y * (7 * z * z - 1),  # sqrt(45 / 16 pi)
        -0.6690465435572892 * y * z * (7 * z * z - 3),  # sqrt(45 / 32 pi)
        0.10578554691520431 * (35 * z * z * z * z - 30 * z * z + 3),  # sqrt(9 / 256 pi)
        -0.6690465435572892 * x * z * (7 * z * z - 3),
        0.47308734787878004 * (x * x - y * y) * (7 * z * z - 1),  # sqrt(45 / 64 pi)
        -1.7701307697799304 * x * z * (x * x - 3 * y * y),
        0.6258357354491761 * (x * x * (x * x - 3 * y * y) - y * y * (3 * x * x - y * y)),  # sqrt(315 / 256 pi)
    ]
  return basis


def sh_colors(
    degree: int, coefficients: Float[Array, "N K 3"], means: Float[Array, "N 3"], world_to_camera: Float[Array, "4 4"]
) -> Float[Array, "N 3"]:
  """Colours seen by a camera: sum of coefficient times basis, plus 0.5, not below 0 (3D Gaussian splatting).

  Args:
    degree: how many degrees to use; coefficients beyond it are ignored.
    coefficients: (N, K, 3), K at least (degree + 1)^2.
    means: world coordinates; the direction of view runs from the camera to the Gaussian.
    world_to_camera: (4, 4).
  """
  used = coefficients[:, : num_coefficients(degree)]
  # Whoever calls culls what is not finite. Here it must not reach the gradient of what is: 0 * NaN is NaN.
  used = jnp.where(jnp.isfinite(used), used, 0)
  if degree == 0:  # No direction, hence no gradient to means or camera.
    summed = 0.28209479177387814 * used[:, 0]
  else:
    finite = jnp.all(jnp.isfinite(world_to_camera))
    world_to_camera = jnp.where(finite, world_to_camera, jnp.eye(4, dtype=world_to_camera.dtype))
    rotation, translation = world_to_camera[:3, :3], world_to_camera[:3, 3]
    usable = jnp.all(jnp.abs(means) < 1e10, axis=-1, keepdims=True)  # As in the projection.
    # Camera centre = -R^T t. By default a GPU may multiply matrices with 10 bits of mantissa, a TPU with 7.
    offsets = jnp.where(usable, means, 0) + jnp.matmul(rotation.T, translation, precision="highest")
    squared = jnp.sum(offsets * offsets, axis=-1, keepdims=True)
    usable &= jnp.isfinite(squared) & (squared > 1e-24)  # Else a Gaussian at the camera centre: culled.
    directions = jnp.where(usable, offsets, 0) * jax.lax.rsqrt(jnp.where(usable, squared, 1))
    # Written as a sum over the few basis functions: XLA fuses it, where a batched (1, K) x (K, 3) product would not be.
    summed = sum(b[:, None] * used[:, k] for k, b in enumerate(_basis(degree, directions)))
  return jnp.maximum(summed + 0.5, 0)
