"""Kernels are compiled for accelerators that are not there. JAX itself runs on the CPU."""

import os
import pathlib
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
# libtpu: look for no TPU host around this machine.
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
os.environ["TPU_WORKER_ID"] = "0"
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
