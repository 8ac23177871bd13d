"""FD where covariances are singular, against an exact form that takes no matrix root.

With the centred frames X (n, d) and Y (m, d), tr (Cx Cy)^(1/2) is the nuclear norm of X Y^T / sqrt((n - 1)(m - 1)).
"""

import numpy as np
import pytest

from rsatalker_jax.evaluation import motion_metrics


def exact(a, b):
  x, y = a - a.mean(0), b - b.mean(0)
  x, y = x / np.sqrt(len(a) - 1), y / np.sqrt(len(b) - 1)
  shared = np.linalg.svd(x @ y.T, compute_uv=False).sum()
  return np.sum((a.mean(0) - b.mean(0)) ** 2) + np.sum(x**2) + np.sum(y**2) - 2 * shared


@pytest.mark.parametrize("frames, rank", [((12, 300), 50), ((12, 9), 50), ((300, 200), 5), ((300, 300), 1), ((2, 2), 50)])
def test_short_clips_and_motion_in_few_directions(frames, rank):
  rng = np.random.default_rng(rank + sum(frames))
  a, b = (rng.normal(size=(n, rank)) @ rng.normal(size=(rank, 50)) + rng.normal(size=50) for n in frames)
  found = motion_metrics.clip_frechet_distance(a, b)
  np.testing.assert_allclose(found, exact(a, b), rtol=1e-6)


def test_one_shared_subspace():
  rng = np.random.default_rng(0)
  basis = rng.normal(size=(4, 50))
  a, b = rng.normal(size=(100, 4)) @ basis, (0.5 + rng.normal(size=(80, 4))) @ basis
  np.testing.assert_allclose(motion_metrics.clip_frechet_distance(a, b), exact(a, b), rtol=1e-6)
