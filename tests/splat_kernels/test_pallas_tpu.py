"""The TPU kernels, interpreted: the shared contract."""

from rasterizer_contract import RasterizerContract


class TestPallasTpu(RasterizerContract):
  implementation = "pallas_tpu"
