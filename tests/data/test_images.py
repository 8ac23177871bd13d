"""Images in every form that writers use, against the numbers they were made of."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from rsatalker_jax.data import images
from rsatalker_jax.data.images import read_header, read_image, read_mask
from rsatalker_jax.errors import InputError

H, W = 12, 20
RAMP = np.tile(np.arange(W) / (W - 1), (H, 1)).astype(np.float32)
GREY = np.round(RAMP * 255).astype(np.uint8)
DEEP = np.round(RAMP * 65535).astype(np.uint16)
COLORS = np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)
ALPHA = np.random.default_rng(1).integers(0, 256, (H, W), np.uint8)
WHITE = np.full((H, W, 3), 255, np.uint8)


def save(path, pixels, mode=None, **options):
  Image.fromarray(pixels, mode).save(path, **options)
  return path


def write_png(path, pixels, depth, color, extra=b""):
  """A PNG by hand, of samples that fill whole bytes. Color: 0 grey, 2 RGB, 4 grey with alpha, 6 RGBA."""
  chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
  lines = b"".join(b"\0" + line.astype(f">u{depth // 8}").tobytes() for line in pixels)
  header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], depth, color, 0, 0, 0)
  path.write_bytes(
      b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
  )
  return path


def palette(colors, transparency=None):
  """Index 0 on the left half, 1 on the right."""
  picture = Image.fromarray((RAMP > 0.5).astype(np.uint8), "P")
  picture.putpalette(np.array(colors, np.uint8).tobytes())
  if transparency is not None:
    picture.info["transparency"] = transparency
  return picture


def turned(orientation):
  exif = Image.Exif()
  exif[0x112] = orientation
  return exif


HALF = (RAMP > 0.5).astype(np.float32)
CMYK = np.dstack([COLORS, ALPHA])
# What is written, and the colours (or grey) and alpha that it stands for, each with its tolerance in 1/255.
IMAGES = {
    "RGB": (lambda p: save(p / "a.png", COLORS), COLORS / 255, None, 0),
    "grey": (lambda p: save(p / "a.png", GREY), GREY / 255, None, 0),
    "RGBA": (lambda p: save(p / "a.png", np.dstack([COLORS, ALPHA])), COLORS / 255, ALPHA / 255, 0),
    "grey and alpha": (lambda p: save(p / "a.png", np.dstack([GREY, ALPHA]), "LA"), GREY / 255, ALPHA / 255, 0),
    "16 bits": (lambda p: write_png(p / "a.png", DEEP, 16, 0), DEEP / 65535, None, 0),
    "16 bits, RGB": (lambda p: write_png(p / "a.png", np.dstack([DEEP, DEEP[:, ::-1], DEEP]), 16, 2),
                     np.dstack([DEEP, DEEP[:, ::-1], DEEP]) / 65535, None, 1),
    "16 bits, grey and alpha": (lambda p: write_png(p / "a.png", np.dstack([DEEP, DEEP[:, ::-1]]), 16, 4),
                                DEEP / 65535, DEEP[:, ::-1] / 65535, 1),
    "16 bits, RGBA": (lambda p: write_png(p / "a.png", np.dstack([DEEP] * 3 + [DEEP[:, ::-1]]), 16, 6),
                      DEEP / 65535, DEEP[:, ::-1] / 65535, 1),
    "transparent grey": (lambda p: save(p / "a.png", GREY, transparency=0), GREY / 255, GREY > 0, 0),
    "transparent colour": (lambda p: save(p / "a.png", COLORS, transparency=tuple(COLORS[3, 4].tolist())),
                           COLORS / 255, (COLORS != COLORS[3, 4]).any(-1), 0),
    "transparent 16 bits": (lambda p: save(p / "a.png", DEEP, transparency=int(DEEP[0, 5])), DEEP / 65535, DEEP != DEEP[0, 5], 0),
    "palette": (lambda p: palette([[10, 20, 30], [200, 100, 0]]).save(p / "a.png"),
                np.where(HALF[..., None] > 0, [200, 100, 0], [10, 20, 30]) / 255, None, 0),
    "transparent palette": (lambda p: palette([[10, 20, 30], [200, 100, 0]], bytes([40, 255])).save(p / "a.png"),
                            np.where(HALF[..., None] > 0, [200, 100, 0], [10, 20, 30]) / 255, np.where(HALF, 1, 40 / 255), 0),
    "1 bit": (lambda p: save(p / "a.png", RAMP > 0.5), HALF, None, 0),
    "CMYK": (lambda p: save(p / "a.tif", CMYK, "CMYK"), (255.0 - COLORS) * (255.0 - ALPHA[..., None]) / 255**2, None, 1),
    "JPEG": (lambda p: save(p / "a.jpg", GREY, quality=95), GREY / 255, None, 3),
    "CMYK JPEG": (lambda p: save(p / "a.jpg", np.dstack([GREY, GREY, GREY, 0 * GREY]), "CMYK", quality=95), 1 - GREY / 255, None, 3),
    "telephone's JPEG": (
        lambda p: Image.fromarray(GREY).save(p / "a.jpg", "MPO", save_all=True, append_images=[Image.fromarray(WHITE)], quality=95),
        GREY / 255, None, 3),
    "WebP": (lambda p: save(p / "a.webp", np.dstack([COLORS, ALPHA]), lossless=True, exact=True), COLORS / 255, ALPHA / 255, 0),
    "BMP": (lambda p: save(p / "a.bmp", COLORS), COLORS / 255, None, 0),
    "TIFF": (lambda p: save(p / "a.tif", DEEP), DEEP / 65535, None, 0),
    "TIFF, white is zero": (lambda p: save(p / "a.tif", DEEP, tiffinfo={262: 0}), 1 - DEEP / 65535, None, 0),
    # Written on its side: row 0 is the right edge.
    "TIFF, turned": (lambda p: save(p / "a.tif", np.rot90(COLORS), exif=turned(6)), COLORS / 255, None, 0),
    "wrong name": (lambda p: save(p / "a.png", COLORS, format="BMP"), COLORS / 255, None, 0),
}


@pytest.mark.parametrize("name", IMAGES)
def test_values_of_every_kind_of_image(tmp_path, name):
  write, colors, alpha, tolerance = IMAGES[name]
  write(tmp_path)
  (path,) = tmp_path.iterdir()
  found, found_alpha = read_image(path, (W, H))
  assert found.dtype == np.float32 and found.shape == (H, W, 3) and read_header(path) == ((W, H), alpha is not None)
  expected = colors if np.ndim(colors) == 3 else np.repeat(colors[..., None], 3, axis=-1)
  np.testing.assert_allclose(found, expected, atol=tolerance / 255 + 1e-6)
  if alpha is None:
    assert found_alpha is None
  else:
    np.testing.assert_allclose(found_alpha, alpha, atol=tolerance / 255 + 1e-6)


MASKS = {
    "grey": (lambda p: save(p, GREY), GREY / 255),
    "16 bits": (lambda p: save(p, DEEP), DEEP / 65535),
    "1 bit": (lambda p: save(p, RAMP > 0.5), HALF),
    "grey in RGB": (lambda p: save(p, np.dstack([GREY] * 3)), GREY / 255),
    "alpha of white": (lambda p: save(p, np.dstack([WHITE, GREY])), GREY / 255),
    "alpha of a picture": (lambda p: save(p, np.dstack([COLORS, GREY])), GREY / 255),
    "alpha of grey": (lambda p: save(p, np.dstack([WHITE[..., 0], GREY]), "LA"), GREY / 255),
    "opaque alpha": (lambda p: save(p, np.dstack([GREY] * 3 + [WHITE[..., 0]])), GREY / 255),
    "palette of grey": (lambda p: palette([[0] * 3, [255] * 3]).save(p), HALF),
    "transparent palette": (lambda p: palette([[255] * 3, [255] * 3], bytes([0, 255])).save(p), HALF),
    "no head": (lambda p: save(p, 0 * GREY), 0 * RAMP),
    "JPEG": (lambda p: save(p, np.dstack([GREY] * 3), format="JPEG", quality=95), GREY / 255),
}


@pytest.mark.parametrize("name", MASKS)
def test_values_of_every_kind_of_mask(tmp_path, name):
  write, expected = MASKS[name]
  write(tmp_path / "a.png")
  mask = read_mask(tmp_path / "a.png", (W, H))
  assert mask.dtype == np.float32 and mask.flags.c_contiguous
  np.testing.assert_allclose(mask, expected, atol=(3 if name == "JPEG" else 0) / 255 + 1e-6)


@pytest.mark.parametrize(
    "pixels, message",
    [
        (np.dstack([GREY, 0 * GREY, 0 * GREY]), "found colours, expected a grey mask, or one in alpha"),
        (np.dstack([COLORS, WHITE[..., 0]]), "found colours"),
        ((RAMP > 0.5).astype(np.uint8), "found no value above 0.0039 of full scale, expected a mask that is white on the head"),
        ((255 * (RAMP > 0.5)).astype(np.uint16), "found no value above 0.0039"),
    ],
)
def test_what_is_no_mask(tmp_path, pixels, message):
  with pytest.raises(InputError, match=f"a.png: {message}"):
    read_mask(save(tmp_path / "a.png", pixels))


def bomb(path):
  """A hundred bytes that would become 100 GB."""
  chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
  header = struct.pack(">IIBBBBB", 200_000, 200_000, 8, 2, 0, 0, 0)
  path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b""))


def flip_bit(path):
  content = bytearray(save(path, COLORS).read_bytes())
  content[len(content) // 2] ^= 4
  path.write_bytes(content)


def long_text(path):
  extra = b"k\0\0" + zlib.compress(b" " * 3_000_000)
  extra = struct.pack(">I", len(extra)) + b"zTXt" + extra + struct.pack(">I", zlib.crc32(b"zTXt" + extra))
  write_png(path, GREY, 8, 0, extra)


def twelve_bits(path):
  content = save(path, DEEP, format="TIFF").read_bytes()
  bits = struct.pack("<HHIH", 258, 3, 1, 16)
  assert content.count(bits) == 1
  path.write_bytes(content.replace(bits, struct.pack("<HHIH", 258, 3, 1, 12)))


def deep_transparency(path):
  data = struct.pack(">HHH", 300, 300, 300)
  extra = struct.pack(">I", 6) + b"tRNS" + data + struct.pack(">I", zlib.crc32(b"tRNS" + data))
  write_png(path, np.dstack([DEEP] * 3), 16, 2, extra)


MISTAKES = {
    "12 bits": (twelve_bits, "found 12 bits in 16"),
    "transparent colour of 16 bits": (deep_transparency, "found the transparent colour .300, 300, 300., of 16 bits"),
    "missing": (lambda p: None, "found No such file or directory, expected a whole image file"),
    "text": (
        lambda p: p.write_text("no image"),
        r"found another format, expected a whole image file \(PNG, JPEG, WebP, BMP or TIFF\)",
    ),
    "empty": (lambda p: p.write_bytes(b""), "found another format"),
    "pipe": (os.mkfifo, "found a pipe or a device"),
    "GIF": (lambda p: save(p, GREY, format="GIF"), "found another format"),
    "cut off": (lambda p: p.write_bytes(save(p, COLORS).read_bytes()[:400]), "found image file is truncated"),
    "cut off JPEG": (lambda p: p.write_bytes(save(p, COLORS, format="JPEG").read_bytes()[:-200]), "found .*truncated"),
    "a bit": (flip_bit, "found broken data stream"),
    "bomb": (bomb, "found .*200000x200000|found .*40000000000 pixels"),
    "other size": (lambda p: save(p, COLORS[:, 1:]), "found 19x12 pixels, expected 20x12"),
    "turned PNG": (lambda p: save(p, GREY, exif=turned(3)), "Orientation: found 3, expected 1, upright pixels"),
    "turned JPEG": (lambda p: save(p, GREY, format="JPEG", exif=turned(3)), "Orientation: found 3"),
    "animated": (
        lambda p: save(p, GREY, save_all=True, append_images=[Image.fromarray(255 - GREY)]),
        "found 2 pictures, expected one",
    ),
    "floats": (lambda p: save(p, RAMP, format="TIFF"), "found numbers of 32 bits"),
    "32 bits": (lambda p: save(p, DEEP.astype(np.int32), format="TIFF"), "found numbers of 32 bits"),
    "text that unpacks": (long_text, "found .*, expected a whole image file"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_one_line_for_each_mistake(tmp_path, mistake):
  write, message = MISTAKES[mistake]
  write(tmp_path / "a.png")
  for read in (read_image, read_mask):
    with pytest.raises(InputError, match=f"a.png: {message}") as error:
      read(tmp_path / "a.png", (W, H))
    assert "\n" not in str(error.value)


def test_no_size_is_decoded_beyond_the_limit(tmp_path, monkeypatch):
  path = save(tmp_path / "a.png", COLORS)
  monkeypatch.setattr(images, "MAX_PIXELS", W * H)
  read_image(path)
  monkeypatch.setattr(images, "MAX_PIXELS", W * H - 1)
  monkeypatch.setattr(images, "_decode", lambda path, picture: pytest.fail("decoded"))
  for read in (read_image, read_mask, read_header):
    with pytest.raises(InputError, match="found 20x12 pixels, expected up to 239"):
      read(path)
  with pytest.raises(InputError, match="found 20x12 pixels, expected up to 239"):
    read_image(path, (W, H))
  with pytest.raises(InputError, match="found 20x12 pixels, expected 21x12"):
    read_image(path, (W + 1, H))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_a_header_is_read_without_pixels(tmp_path, monkeypatch, form):
  path = save(tmp_path / "a", GREY, format=form)
  monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
  assert read_header(path) == ((W, H), False)


def test_postscript_starts_no_program(tmp_path, monkeypatch):
  program = tmp_path / "gs"
  program.write_text(f"#!/bin/sh\ntouch {tmp_path}/called\n")
  program.chmod(0o755)
  monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
  path = tmp_path / "a.png"
  path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 12\n%%EndComments\nshowpage\n")
  with pytest.raises(InputError, match="found another format"):
    read_image(path)
  assert not (tmp_path / "called").exists()


@pytest.mark.filterwarnings("ignore")
def test_damage_is_one_line_whatever_it_makes_of_the_readers(tmp_path):
  rng = np.random.default_rng(0)
  for number, (form, pixels) in enumerate([("PNG", COLORS), ("TIFF", DEEP), ("WEBP", COLORS), ("BMP", GREY), ("JPEG", COLORS)]):
    whole = io.BytesIO()
    Image.fromarray(pixels).save(whole, form)
    for trial in range(40):
      damaged = bytearray(whole.getvalue())
      for place in rng.integers(0, min(len(damaged), 120), 3):
        damaged[place] = rng.integers(256)
      path = tmp_path / f"{number}_{trial}"
      path.write_bytes(damaged)
      try:
        read_image(path, (W, H))
      except InputError as error:
        assert "\n" not in str(error)
