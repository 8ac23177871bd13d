"""The reference is that of the docstrings, and every page has the code that test_distribution.py runs."""

import inspect
import pathlib
import re

import splat_kernels
from tools import splat_kernels_api

ROOT = pathlib.Path(__file__).parents[2]


def test_the_reference_is_up_to_date():
  page = splat_kernels_api.PAGE.read_text()
  assert page == splat_kernels_api.make_page(), "run python tools/splat_kernels_api.py"
  for name in splat_kernels.__all__:
    assert page.count(f"\n### `{name}`\n") == 1
  # Arguments and their meaning, against what Python itself says of them.
  for function in (splat_kernels.rasterize, splat_kernels.composite, splat_kernels.densification.grow):
    section = page.split(f"\n### `{function.__name__}`\n")[1].split("\n### ")[0]
    assert re.findall(r"^- `(\w+)`: .", section.split("**Returns**")[0], re.MULTILINE) == list(
        inspect.signature(function).parameters
    )


def test_constants_stand_with_what_is_said_of_them():
  page = splat_kernels_api.PAGE.read_text()
  section = page.split("\n### `GSPLAT_1_5`\n")[1].split("\n### ")[0]
  assert section.splitlines()[2:4] == [
      "# Its box of min(3.33, sqrt(2 ln(255 opacity))) sigmas holds the whole ellipse, so that the image is the same.",
      "GSPLAT_1_5 = Config(alpha_max=0.999, antialias_floor=0.0)",
  ]


def test_pages_begin_with_the_same_code():
  pages = [ROOT / name for name in ("splat_kernels/README.md", "docs/rasterizer.md", "README.md")]
  codes = [re.search(r"```python\n(.*?)```", page.read_text(), re.DOTALL)[1] for page in pages]
  assert codes[0] == codes[1] == codes[2]
  assert sum(bool(line) for line in codes[0].splitlines()) <= 12
