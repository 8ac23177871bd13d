"""A few steps of Adam on one term-giving method of a generator, to see what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax


def make_waves(seed: int, batch: int, frames: int) -> np.ndarray:
  """Smooth motion (B, T, 56), of variance 1, each wave with a frequency and a phase of its own."""
  rng = np.random.default_rng(seed)
  shape = (batch, 1, 56)
  waves = np.sin(2 * np.pi * (rng.uniform(0.5, 3, shape) * np.arange(frames)[:, None] / 25 + rng.uniform(size=shape)))
  return (2**0.5 * waves).astype(np.float32)


def train(generator, variables, method: str, inputs: tuple, *, steps: int, rate: float = 3e-3):
  """The variables after so many steps on the same inputs, and the terms of the first and the last of them.

  As in the stages, "codes" alone is trained by `codes_terms`, and all but it by `training_terms`.
  """
  chosen = jax.tree_util.tree_map_with_path(lambda path, _: (path[0].key == "codes") == (method == "codes_terms"), variables["params"])
  labels = jax.tree.map(lambda x: "trained" if x else "fixed", chosen)
  optimizer = optax.multi_transform({"trained": optax.adam(rate), "fixed": optax.set_to_zero()}, labels)

  def loss(params, key, progress):
    dropout, sample = jax.random.split(key)
    terms = generator.apply(
        {**variables, "params": params}, *inputs, progress=progress, rngs={"dropout": dropout, "sample": sample}, method=method
    )
    return sum(terms.values()), terms

  def step(carry, number):
    params, state = carry
    (_, terms), grads = jax.value_and_grad(loss, has_aux=True)(params, jax.random.key(number), number / steps)
    updates, state = optimizer.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), terms

  start = variables["params"], optimizer.init(variables["params"])
  (params, _), terms = jax.jit(lambda start: jax.lax.scan(step, start, jnp.arange(steps)))(start)
  first, last = ({name: float(x[i]) for name, x in terms.items()} for i in (0, -1))
  return {**variables, "params": params}, first, last
