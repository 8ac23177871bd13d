"""What Mosaic schedules for the TPU kernels: .venv-aot/bin/python tools/tpu_schedule.py [TOPOLOGY]

Needs no TPU, but what `make test-aot` installs. Prints, per kernel, the instruction bundles of the loop over a tile's
chunks and of the rest of a grid step; and from those, for scenes of a head at 512 x 512, how long the kernels take if
every bundle is a cycle, no tile is left early and no copy is waited for.
"""

import collections
import functools
import os
import pathlib
import re
import sys
import tempfile

DUMPS = tempfile.mkdtemp()
os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
os.environ |= {"TPU_WORKER_ID": "0", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={DUMPS} --xla_mosaic_dump_to={DUMPS}"
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.experimental import topologies  # noqa: E402

from splat_kernels import Config, pallas_tpu, project  # noqa: E402
from splat_kernels.binning import make_bins  # noqa: E402
from splat_kernels.specs import Spec, make_scene  # noqa: E402
from splat_kernels.tile_lists import TileLists, make_tile_lists  # noqa: E402

CLOCK = {"v5e:2x2": 1.5e9}  # Hz: 197e12 bfloat16 operations a second of 4 units of 128 x 128.
SCENES = {
    "head10k": Spec(10_000, 512, 512, 600.0, 0.02),
    "head50k": Spec(50_000, 512, 512, 600.0, 0.01),
    "head100k": Spec(100_000, 512, 512, 600.0, 0.007),
}


def compile_kernels(topology: str, config: Config) -> None:
  device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
  sharding = jax.sharding.SingleDeviceSharding(device)
  shape = lambda dtype, *s: jax.ShapeDtypeStruct(s, dtype, sharding=sharding)
  tiles, chunks, pixels = 1024, 2048, config.tile_size**2
  ints = functools.partial(shape, jnp.int32)
  floats = functools.partial(shape, jnp.float32)
  lists = TileLists(ints(chunks, pallas_tpu.CHUNK), ints(chunks), ints(tiles + 1), ints(tiles))
  table = floats(10, chunks * pallas_tpu.CHUNK)
  forward = lambda table, lists: pallas_tpu.walk.forward(table, lists, tiles, config, save=False)
  backward = lambda *a: pallas_tpu.walk.backward(*a, None, config)
  with jax.default_device(device):
    jax.jit(forward).lower(table, lists).compile()
    jax.jit(backward).lower(table, lists, floats(tiles, 4, pixels), floats(tiles, pixels)).compile()


def count_bundles(kernel: str) -> dict[int, int]:
  """Bundles by the depth of loops they lie in: 1 is the grid's loop, 2 the one over chunks, 3 starts copies."""
  (path,) = pathlib.Path(DUMPS).glob(f"*{kernel}.*[0-9]-final_bundles.txt")
  bundle = re.compile(r"^ *0x[0-9a-f]+ *(?:[A-Z]{2})?: *((?:> ?)*)", re.MULTILINE)
  return collections.Counter(found[1].count(">") for found in bundle.finditer(path.read_text()))


def count_chunks(spec: Spec, config: Config) -> tuple[int, int]:
  """Tiles and chunks of a scene."""
  scene = jax.tree.map(jnp.asarray, make_scene(spec))
  geometry = {key: scene[key] for key in ("means", "quats", "scales", "opacities", "camera")}
  projected = project(**geometry, config=config)
  draw = lambda p: make_bins(p, None, width=spec.width, height=spec.height, config=config, capacity=10 * spec.num)
  lists = make_tile_lists(jax.vmap(draw)(projected), spec.num, pallas_tpu.CHUNK)
  return lists.counts.size, int(lists.starts[-1])


def main() -> None:
  topology, config = sys.argv[1] if len(sys.argv) > 1 else "v5e:2x2", Config()
  compile_kernels(topology, config)
  bundles = {name: count_bundles(f"splat_{name}") for name in ("forward", "backward")}
  for name, by_depth in bundles.items():
    chunk = by_depth[2] + by_depth[3]
    print(f"{topology} {name}: {chunk} bundles per chunk of {pallas_tpu.CHUNK}, {by_depth[1]} per tile")
  for name, spec in SCENES.items() if topology in CLOCK else ():
    tiles, chunks = count_chunks(spec, config)
    times = [1e6 * (chunks * (b[2] + b[3]) + tiles * b[1]) / CLOCK[topology] for b in bundles.values()]
    both = 1e6 / sum(times)
    forward = f"forward {times[0]:.0f} us ({1e6 / times[0]:.0f} frames/s)"
    print(f"{name}: {tiles} tiles, {chunks} chunks: {forward}, backward {times[1]:.0f} us, both {both:.0f} frames/s")


if __name__ == "__main__":
  main()
