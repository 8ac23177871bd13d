"""Reading images: the one place where files of pixels become numbers in [0, 1].

Files come from strangers. Pillow takes a format from the bytes, whatever the name says, and some of its formats start
other programs, so the formats are listed here; and it believes a header of any size, so that is looked at before a pixel
is decoded.
"""

import contextlib
import pathlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float
from PIL import Image, TiffImagePlugin, UnidentifiedImageError
from PIL.ExifTags import Base

from rsatalker_jax.errors import InputError
from rsatalker_jax.files import open_regular

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
MAX_PIXELS = 1 << 26  # Of an image or a frame of a film: 8192 x 8192.
_EXPECTED = "a whole image file (PNG, JPEG, WebP, BMP or TIFF)"


def read_header(path: pathlib.Path) -> tuple[tuple[int, int], bool]:
  """Width and height, and whether there is alpha; no pixel is decoded.

  Raises:
    InputError: see `read_image`.
  """
  with _open(path) as picture:
    return picture.size, picture.has_transparency_data


def read_image(
    path: pathlib.Path, size: tuple[int, int] | None = None, source: str = ""
) -> tuple[Float[np.ndarray, "H W 3"], Float[np.ndarray, "H W"] | None]:
  """Colours and, where the file has one, alpha, in [0, 1].

  Grey and palettes become RGB, a transparent colour becomes alpha. Grey keeps 16 bits; colours of 16 bits are read to 8.

  Args:
    path: the file.
    size: width and height that it must have; None takes any. `MAX_PIXELS` are the most.
    source: who says so, for the line of the error.

  Raises:
    InputError: the file is missing, damaged, of another format or size, animated, or viewers would turn it. Damage to a
      JPEG that leaves something to decode cannot be told: the format has no checksums.
  """
  with _open(path, size, source) as picture:
    colors, alpha = _decode(path, picture)
  return (colors if colors.ndim == 3 else np.repeat(colors[..., None], 3, axis=-1)), alpha


def read_mask(path: pathlib.Path, size: tuple[int, int] | None = None, source: str = "") -> Float[np.ndarray, "H W"]:
  """A mask in [0, 1], see `mask_from_pixels`.

  Raises:
    InputError: see `read_image` and `mask_from_pixels`.
  """
  with _open(path, size, source) as picture:
    return mask_from_pixels(path, *_decode(path, picture))


def mask_from_pixels(
    path: pathlib.Path, colors: Float[np.ndarray, "H W *c"], alpha: Float[np.ndarray, "H W"] | None
) -> Float[np.ndarray, "H W"]:
  """The mask that pixels in [0, 1] stand for: alpha unless all of it is opaque, else brightness.

  Raises:
    InputError: coloured pixels, as of a map of labels; or nothing above 1/255, as where 0 and 1 were written for 0 and 255.
  """
  if alpha is not None and alpha.min() < 1:
    mask = alpha
  else:
    if colors.ndim == 3 and np.ptp(colors, axis=-1).max() > 0.1:  # JPEG's grey is off by less.
      raise InputError(path, "", "colours", "a grey mask, or one in alpha")
    mask = colors if colors.ndim == 2 else colors[..., 0]
  if 0 < mask.max() <= np.float32(1 / 255):
    raise InputError(path, "", f"no value above {mask.max():.2g} of full scale", "a mask that is white on the head")
  return np.ascontiguousarray(mask)


def check_size(path: pathlib.Path, found: tuple[int, int], expected: tuple[int, int], source: str = "") -> None:
  """Raises InputError where width and height are other ones than `source` says."""
  if found != expected:
    said = f" as {source} says" if source else ""
    raise InputError(path, "", f"{found[0]}x{found[1]} pixels", f"{expected[0]}x{expected[1]}{said}")


@contextlib.contextmanager
def _open(path: pathlib.Path, size: tuple[int, int] | None = None, source: str = "") -> Iterator[Image.Image]:
  try:
    with open_regular(path, _EXPECTED) as file, Image.open(file, formats=FORMATS) as picture:
      if size is not None:
        check_size(path, picture.size, size, source)
      if picture.width * picture.height > MAX_PIXELS:
        raise InputError(path, "", f"{picture.width}x{picture.height} pixels", f"up to {MAX_PIXELS}")
      # MPO: a telephone's JPEG with previews behind it.
      count = getattr(picture, "n_frames", 1)
      if count > 1 and picture.format != "MPO":
        raise InputError(path, "", f"{count} pictures", "one")
      yield picture
  except InputError:
    raise
  except UnidentifiedImageError:
    raise InputError(path, "", "another format", _EXPECTED) from None
  except Exception as error:  # Pillow's readers let through what damage makes of them: ten kinds and more.
    raise InputError(path, "", str(error) or type(error).__name__, _EXPECTED) from None


def _decode(path: pathlib.Path, picture: Image.Image) -> tuple[Float[np.ndarray, "H W *c"], Float[np.ndarray, "H W"] | None]:
  """Grey (H, W) or RGB (H, W, 3), and alpha."""
  picture.load()
  if (turn := picture.getexif().get(Base.Orientation, 1)) != 1:  # Of a TIFF, Pillow has turned the pixels.
    raise InputError(path, "Orientation", turn, "1, upright pixels")
  transparent = picture.info.get("transparency")
  if picture.mode.startswith("I;16"):
    grey = np.asarray(picture)
    alpha = None if transparent is None else (grey != transparent).astype(np.float32)
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
      if picture.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (16,)) != (16,):
        raise ValueError(f"{picture.tag_v2[TiffImagePlugin.BITSPERSAMPLE][0]} bits in 16")
      if picture.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
        grey = 65535 - grey  # White is zero, which Pillow heeds for 8 bits alone.
    return grey.astype(np.float32) / 65535, alpha
  if picture.mode in ("I", "F"):
    raise ValueError("numbers of 32 bits, whose white is not known")
  if picture.has_transparency_data:
    if isinstance(transparent, (int, tuple)) and np.max(transparent) > 255:
      raise ValueError(f"the transparent colour {transparent}, of 16 bits")
    pixels = np.asarray(picture.convert("RGBA"), np.float32) / 255
    return np.ascontiguousarray(pixels[..., :3]), pixels[..., 3]
  grey = picture.mode in ("1", "L")
  return np.asarray(picture.convert("L" if grey else "RGB"), np.float32) / 255, None
