"""More channels, frames and pixels than an implementation draws at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from splat_kernels import Config, Projected, composite
from splat_kernels.reference import Reference

FRAMES, NUM, CHANNELS, WIDTH, HEIGHT = 3, 5, 5, 24, 8  # 3 tiles of 8 each.


class Limited(Reference):
  """Draws 2 channels and 7 tiles at a time; knows what it was asked to draw."""

  name = "limited"

  def __init__(self):
    self.asked = []

  def most_channels(self, config: Config, *, absolute: bool = False) -> int:
    return 4 if absolute else 2

  def most_tiles(self, config: Config) -> int:
    return 7

  def composite(self, projected, features, **options):
    self.asked.append((features.shape[0], features.shape[-1]))
    return super().composite(projected, features, **options)


def drawing(implementation, *, channels=CHANNELS, width=WIDTH, absolute=False):
  """A function that draws frames that have everything of their own, and its arguments."""
  rng = np.random.default_rng(0)
  uniform = lambda low, high, *shape: jnp.asarray(rng.uniform(low, high, size=(FRAMES, *shape)), jnp.float32)
  conics = jnp.full((FRAMES, NUM, 3), 0.1).at[..., 1].set(0.02)
  depths, opacities, means = uniform(1, 2, NUM), uniform(0.2, 0.9, NUM), uniform(2, 22, NUM, 2)
  features, background = uniform(0, 1, NUM, channels), uniform(0, 1, channels)
  mask = jnp.ones((FRAMES, 1, -(-width // 8)), bool).at[1, 0, 1].set(False)
  options = {"width": width, "height": HEIGHT, "config": Config(tile_size=8), "implementation": implementation}
  options |= {"means2d_abs_offset": jnp.zeros((FRAMES, NUM, 2))} if absolute else {}

  def draw(means, conics, opacities, features, background):
    projected = Projected(means, conics, depths, opacities, jnp.full_like(means, 6.0), jnp.full((FRAMES, NUM), 6))
    return composite(projected, features, background, tile_mask=mask, **options)

  return draw, (means, conics, opacities, features, background)


def draw_and_differentiate(implementation):
  draw, given = drawing(implementation)
  weights = np.random.default_rng(1).normal(size=(FRAMES, HEIGHT, WIDTH, CHANNELS)).astype(np.float32)

  def loss(*given):
    output = draw(*given)
    return jnp.sum(output.image * weights), output

  return jax.jit(jax.value_and_grad(loss, argnums=range(5), has_aux=True))(*given)


def test_groups_are_drawn_as_the_whole_is():
  limited = Limited()
  drawn, expected = draw_and_differentiate(limited), draw_and_differentiate("reference")
  assert set(limited.asked) == {(2, 2), (2, 1), (1, 2), (1, 1)}
  for value, other in zip(jax.tree.leaves(drawn), jax.tree.leaves(expected)):
    assert value.shape == other.shape
    np.testing.assert_allclose(value, other, rtol=1e-5, atol=1e-5)


def test_absolute_gradients_are_of_all_channels_at_once():
  limited = Limited()
  draw, given = drawing(limited, channels=4, absolute=True)
  jax.eval_shape(draw, *given)
  assert set(limited.asked) == {(2, 4), (1, 4)}
  draw, given = drawing(limited, absolute=True)
  with pytest.raises(ValueError, match=r"^means2d_abs_offset with 5 channels .* tiles of 8: limited takes at most 4$"):
    draw(*given)


def test_a_frame_that_is_too_large_is_refused():
  draw, given = drawing(Limited(), width=64)
  with pytest.raises(ValueError, match=r"^64 x 8 pixels are 8 tiles of 8, limited draws at most 7: take larger tiles$"):
    draw(*given)
