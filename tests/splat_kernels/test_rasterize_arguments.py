"""Wrong arguments end in a ValueError that prints the value."""

import dataclasses

import jax.numpy as jnp
import pytest

from splat_kernels import Camera, Config, project, rasterize

pytestmark = pytest.mark.usefixtures("unchecked_signatures")


@pytest.fixture
def arguments():
  return {
      "means": jnp.zeros((5, 3)),
      "quats": jnp.zeros((5, 4)),
      "scales": jnp.zeros((5, 3)),
      "opacities": jnp.zeros(5),
      "colors": jnp.zeros((5, 3)),
      "camera": Camera(jnp.eye(4), jnp.eye(3), 8, 8),
  }


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"means": jnp.zeros((5, 2))}, r"means.shape=\(5, 2\) must be"),
        ({"quats": jnp.zeros((4, 4))}, r"quats.shape=\(4, 4\) must be \(\*b, 5, 4\)"),
        ({"scales": jnp.zeros((5, 1))}, r"scales.shape=\(5, 1\)"),
        ({"opacities": jnp.zeros((5, 1))}, r"opacities.shape=\(5, 1\)"),
        ({"colors": jnp.zeros((4, 3))}, r"colors.shape=\(4, 3\).*sh_degree"),
        ({"colors": jnp.zeros((5, 3, 3)), "sh_degree": 1}, r"colors.shape=\(5, 3, 3\).*K >= 4"),
        ({"sh_degree": 5}, "sh_degree=5"),
        ({"background": jnp.zeros(4)}, r"background.shape=\(4,\) must be \(\*b, 3\)"),
        ({"means2d_offset": jnp.zeros((5, 3))}, r"means2d_offset.shape=\(5, 3\)"),
        ({"means2d_abs_offset": jnp.zeros((4, 2))}, r"means2d_abs_offset.shape=\(4, 2\)"),
        ({"implementation": "cuda"}, "implementation='cuda' must be None or one of reference, xla"),
        ({"means": jnp.zeros((2, 5, 3)), "quats": jnp.zeros((3, 5, 4))}, r"must broadcast, but are \(\(2,\), "),
        ({"world_to_camera": jnp.eye(3)}, r"world_to_camera.shape=\(3, 3\)"),
        ({"intrinsics": jnp.eye(4)}, r"intrinsics.shape=\(4, 4\)"),
        ({"width": 0}, "camera.width=0"),
        ({"near": -1.0}, "camera.near=-1.0"),
    ],
)
def test_rasterize_names_what_is_wrong(arguments, wrong, message):
  of_camera = {name: value for name, value in wrong.items() if hasattr(arguments["camera"], name)}
  wrong = {name: value for name, value in wrong.items() if name not in of_camera}
  camera = dataclasses.replace(arguments["camera"], **of_camera)
  with pytest.raises(ValueError, match=message):
    rasterize(**{**arguments, "camera": camera, **wrong})


def test_project_checks_too(arguments):
  del arguments["colors"]
  with pytest.raises(ValueError, match=r"means.shape=\(3,\)"):
    project(**{**arguments, "means": jnp.zeros(3)})


@pytest.mark.parametrize(
    "field, value",
    [
        ("tile_size", 12),
        ("alpha_min", 0.0),
        ("alpha_max", 1.0),
        ("transmittance_min", 0.0),
        ("near", 0.0),
        ("low_pass", -0.1),
        ("antialias_floor", 2.0),
        ("support", "circle"),
        ("jacobian_limit", "gsplat"),
        ("max_intersections", 0),
    ],
)
def test_config_names_the_field(field, value):
  with pytest.raises(ValueError, match=f"{field}={value!r}"):
    dataclasses.replace(Config(), **{field: value})
