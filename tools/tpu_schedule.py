"""What Mosaic schedules for the TPU kernels: .venv-aot/bin/python tools/tpu_schedule.py [TOPOLOGY]

Needs no TPU, but what `make test-aot` installs. Prints JSON: for each kernel, for colours and depth on tiles of 16, the
instruction bundles per (tile, chunk) and per tile beside.
"""

import collections
import functools
import json
import os
import pathlib
import re
import sys
import tempfile

DUMPS = pathlib.Path(tempfile.mkdtemp())
os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
os.environ |= {"TPU_WORKER_ID": "0", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={DUMPS} --xla_mosaic_dump_to={DUMPS}"
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.experimental import topologies  # noqa: E402

from splat_kernels import Config  # noqa: E402
from splat_kernels.pallas_mosaic_tpu import CHUNK, IMPLEMENTATION  # noqa: E402
from splat_kernels.tile_lists import TileLists  # noqa: E402


def count_bundles(program, *arguments) -> dict[str, int]:
  """Bundles of the one kernel of a program, by the loops they lie in: the grid's, or the ones over a tile's chunks."""
  jax.jit(program).lower(*arguments).compile()
  (path,) = DUMPS.glob("*splat_*.*[0-9]-final_bundles.txt")
  bundle = re.compile(r"^ *0x[0-9a-f]+ *(?:[A-Z]{2})?: *((?:> ?)*)", re.MULTILINE)
  by_depth = collections.Counter(found[1].count(">") for found in bundle.finditer(path.read_text()))
  for dump in DUMPS.iterdir():
    dump.unlink()
  return {"per chunk": sum(n for depth, n in by_depth.items() if depth >= 2), "per tile": by_depth[1]}


def main() -> None:
  jax.config.update("jax_enable_compilation_cache", False)  # What comes out of a cache is not scheduled.
  topology = sys.argv[1] if len(sys.argv) > 1 else "v5e:2x2"
  device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
  sharding = jax.sharding.SingleDeviceSharding(device)
  here = functools.partial(jax.tree.map, lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding))
  config, tiles, chunks, channels = Config(), 1024, 2048, 4
  ints = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
  floats = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  lists = here(TileLists(ints(chunks, CHUNK), ints(chunks), ints(tiles), ints(tiles)))
  table, gradient = here((floats(7 + channels, chunks * CHUNK), floats(tiles, channels + 1, config.tile_size**2)))
  forward = functools.partial(IMPLEMENTATION.forward, num_tiles=tiles, config=config, interpret=False)
  backward = functools.partial(IMPLEMENTATION.backward, config=config, interpret=False)
  with jax.default_device(device):
    saved = here(jax.eval_shape(lambda t, l: forward(t, l, save=True)[1], table, lists))
    counts = {
        "forward": count_bundles(functools.partial(forward, save=False), table, lists),
        "forward, saving": count_bundles(functools.partial(forward, save=True), table, lists),
        "backward": count_bundles(functools.partial(backward, absolute=False), table, lists, gradient, saved),
        "backward, absolute": count_bundles(functools.partial(backward, absolute=True), table, lists, gradient, saved),
    }
  print(json.dumps(counts, indent=1))


if __name__ == "__main__":
  main()
