"""The examples in a tiny form: what they fit comes out better than anything that does not learn from its gradients."""

import pytest
from PIL import Image

from examples import fit_image, fit_scene


def test_a_picture_is_fitted(tmp_path):
  out = tmp_path / "fit.png"
  run = lambda steps: fit_image.main(["--size=64", "--gaussians=300", f"--steps={steps}", f"--out={out}"])
  start, end = run(1), run(60)
  assert Image.open(out).size == (128, 64)
  assert start < 17 and end > 23


def test_a_given_picture_is_fitted_in_its_own_shape(tmp_path):
  given, out = tmp_path / "given.png", tmp_path / "fit.png"
  Image.new("RGB", (64, 32), (200, 30, 60)).save(given)
  assert fit_image.main(["--image", str(given), "--size=32", "--gaussians=60", "--steps=20", f"--out={out}"]) > 20
  assert Image.open(out).size == (64, 16)


@pytest.mark.parametrize(("density", "least"), [("adaptive", 1), ("mcmc", 1)])
def test_a_scene_is_fitted_and_grows(density, least, tmp_path):
  out = tmp_path / "fit.png"
  size = ["--size=32", "--views=8", "--start=200", "--capacity=400", f"--out={out}"]
  psnr, count = fit_scene.main([*size, "--steps=110", f"--density={density}"])
  assert Image.open(out).size == (32, 64)
  assert count > 200 and psnr > 0
