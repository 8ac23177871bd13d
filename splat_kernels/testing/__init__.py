"""Tests for implementations of one's own. Needs pytest and hypothesis (`pip install splat_kernels[test]`)."""

from splat_kernels.testing.contract import (
    ARRAYS,
    CASES,
    RasterizerContract,
    draw_and_differentiate,
    jax_scene,
    of,
    reference_of,
    worst_error,
)

__all__ = [
    "ARRAYS",
    "CASES",
    "RasterizerContract",
    "draw_and_differentiate",
    "jax_scene",
    "of",
    "reference_of",
    "worst_error",
]
