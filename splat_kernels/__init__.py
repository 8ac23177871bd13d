"""A differentiable tile-based rasterizer of 3D Gaussians in JAX: one contract, several implementations.

See docs/rasterizer.md for the algorithm, the conventions and how to size buffers.
"""

from splat_kernels.api import project, rasterize, round_capacity
from splat_kernels.projection import finite_gaussians
from splat_kernels.surfaces import normals
from splat_kernels.types import GSPLAT_1_5, GSPLAT_1_6, INRIA, Camera, Config, Projected, RenderOutput

__all__ = [
    "GSPLAT_1_5",
    "GSPLAT_1_6",
    "INRIA",
    "Camera",
    "Config",
    "Projected",
    "RenderOutput",
    "finite_gaussians",
    "normals",
    "project",
    "rasterize",
    "round_capacity",
]
