"""A head and a person that the tests of files and of the page share."""

import jax.numpy as jnp
import numpy as np
import pytest

from rsatalker_jax.avatar import Avatar, Gaussians, init_avatar
from rsatalker_jax.head import load_head
from tiny_world import write_head


@pytest.fixture(scope="session")
def head(tmp_path_factory):
  path = tmp_path_factory.mktemp("head") / "head.npz"
  write_head(path)
  return load_head(path)


@pytest.fixture(scope="session")
def avatar(head) -> Avatar:
  """One Gaussian more than faces by a fifth, each with its own place, turn, size and colours of degree 2."""
  num_faces = head.faces.shape[0]
  start = init_avatar(head, jnp.array([0.5, -1.0]), num_gaussians=num_faces * 6 // 5, sh_degree=2)
  rng = np.random.default_rng(1)
  draw = lambda *shape: rng.normal(size=(len(start.binding), *shape)).astype(np.float32)
  gaussians = Gaussians(
      means=start.gaussians.means + 0.2 * draw(3),
      quats=draw(4),
      log_scales=start.gaussians.log_scales - 1 + 0.3 * draw(3),
      opacity_logits=1 + draw(),
      sh=0.3 * draw(9, 3),
  )
  offset = 0.002 * rng.normal(size=head.v_template.shape).astype(np.float32)
  return start.replace(gaussians=gaussians, static_offset=jnp.asarray(offset))
