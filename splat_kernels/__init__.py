"""A differentiable tile-based rasterizer of 3D Gaussians in JAX: one contract, several implementations.

See docs/rasterizer.md for a first picture, the algorithm, the conventions and how to size buffers.
"""

from splat_kernels.api import project, rasterize
from splat_kernels.compositing import composite, round_capacity
from splat_kernels.implementations import Implementation, register
from splat_kernels.surfaces import normals
from splat_kernels.types import GSPLAT_1_5, GSPLAT_1_6, INRIA, Camera, Composited, Config, Projected, RenderOutput
from splat_kernels.visibility import Contributors, contributors

__all__ = [
    "GSPLAT_1_5",
    "GSPLAT_1_6",
    "INRIA",
    "Camera",
    "Composited",
    "Config",
    "Contributors",
    "Implementation",
    "Projected",
    "RenderOutput",
    "composite",
    "contributors",
    "normals",
    "project",
    "rasterize",
    "register",
    "round_capacity",
]
__version__ = "0.2.0"
