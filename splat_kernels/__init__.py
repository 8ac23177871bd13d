"""A differentiable tile-based rasterizer of 3D Gaussians in JAX: one contract, several implementations.

See docs/rasterizer.md for the algorithm, the conventions and how to size buffers.
"""

from splat_kernels.api import project, rasterize
from splat_kernels.types import Camera, Config, Projected, RenderOutput

__all__ = ["Camera", "Config", "Projected", "RenderOutput", "project", "rasterize"]
