"""The NVIDIA kernels, interpreted: the shared contract."""

from rasterizer_contract import RasterizerContract


class TestPallasGpu(RasterizerContract):
  implementation = "pallas_gpu"
