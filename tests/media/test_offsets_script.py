"""The script that corrects Gaussians by Eq. 8, against `GaussianOffsetNet`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from media.scripts import run_scripts
from rsatalker_jax.avatar import init_avatar
from rsatalker_jax.media.tables import Tables
from rsatalker_jax.social import GaussianOffsetNet, RelationEmbedding, parse_relation
from rsatalker_jax.social.folding import fold_offsets

NAMES = ("blood,equal", "non_blood,unequal", "unknown", "non_blood,unknown")
STATISTICS = {"motion_mean": np.linspace(-0.5, 0.5, 56, dtype=np.float32), "motion_std": np.linspace(0.1, 1.5, 56, dtype=np.float32)}
# Of the conversation's frames: between two, before the first (nothing is shown there), and behind the 800 after which time repeats itself.
TIMES = (0.0, 3.0, 7.25, 799.9, 812.5, 90000.75)

CORRECT = """async ({ tables, packed, times, relations, motions }) => {
  const read = readTables(tables, await unzip(packed)), offsets = makeOffsets(read), out = [];
  times.forEach((t, i) => out.push(...offsets.at(t, relations[i], motions.subarray(56 * i, 56 * (i + 1)))));
  return Float32Array.from(out);
}"""
SCRIPTS = ["tables.js", "layers.js", "offsets.js"]


def random_offsets(num_faces, inputs=("relation", "time")):
  """A network of corrections of millimetres, its variables, and the queries of `NAMES`."""
  net = GaussianOffsetNet(num_faces, hidden=10, inputs=inputs)
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(8), jnp.zeros(()), jnp.zeros(56))
  rng = np.random.default_rng(2)
  params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32) / np.sqrt(x.shape[0]), shapes)
  params["params"]["out"] = {name: (0.002 * x).astype(np.float32) for name, x in params["params"]["out"].items()}
  embedding = RelationEmbedding(4)
  relations = np.stack([parse_relation(name) for name in NAMES])
  queries = embedding.apply(embedding.init(jax.random.key(1), relations[0]), relations)
  return net, params, np.asarray(queries)


@pytest.mark.parametrize("inputs", [
    ("relation", "time"), ("relation", "time", "motion"), ("motion", "relation"), ("time",), ("motion",),
])  # fmt: skip
def test_corrections_are_those_of_the_network(tmp_path, head, inputs):
  num_faces = len(head.faces)
  net, params, queries = random_offsets(num_faces, inputs)
  avatar = init_avatar(head, jnp.zeros(2), num_gaussians=num_faces, sh_degree=0)
  avatar = avatar.replace(binding=np.arange(num_faces, dtype=np.int32)[::-1] // 2 * 2)  # Every other face has two.
  tables = Tables("run")
  seen = tables.add_triangles(avatar, head)
  tables.add_offsets(avatar, seen, fold_offsets(net, params, queries, STATISTICS))
  rng = np.random.default_rng(3)
  motions = rng.normal(size=(len(TIMES), 56)).astype(np.float32)
  relations = [i % len(NAMES) for i in range(len(TIMES))]
  made = run_scripts(
      SCRIPTS, CORRECT, tmp_path / "run", tables=tables.descriptions, packed=tables.pack(), times=TIMES, relations=relations, motions=motions
  ).reshape(len(TIMES), num_faces, 3)
  standardised = (motions - STATISTICS["motion_mean"]) / STATISTICS["motion_std"]
  expected = np.array(net.apply(params, queries[relations], np.array(TIMES, np.float32), standardised))
  expected[:, np.setdiff1d(np.arange(num_faces), avatar.binding)] = 0
  assert expected.std() > 5e-4 and np.abs(np.diff(expected, axis=0)).max(axis=(1, 2)).min() > 5e-4
  np.testing.assert_allclose(made, expected, rtol=0, atol=3e-6)  # Micrometres: the arrays' 16 bits.


def test_before_the_conversation_it_is_its_beginning(tmp_path, head):
  net, params, queries = random_offsets(len(head.faces))
  avatar, tables = init_avatar(head, jnp.zeros(2), num_gaussians=len(head.faces), sh_degree=0), Tables("run")
  tables.add_offsets(avatar, tables.add_triangles(avatar, head), fold_offsets(net, params, queries, STATISTICS))
  inputs = dict(tables=tables.descriptions, packed=tables.pack(), relations=[1, 1], motions=np.zeros(112, np.float32))
  before, first = run_scripts(SCRIPTS, CORRECT, tmp_path / "run", times=[-0.7, 0.0], **inputs).reshape(2, -1)
  np.testing.assert_array_equal(before, first)


def test_an_avatar_without_them_has_none(tmp_path, head):
  avatar, tables = init_avatar(head, jnp.zeros(2), num_gaussians=len(head.faces), sh_degree=0), Tables("run")
  tables.add_triangles(avatar, head)
  main = "async ({ tables, packed }) => Float32Array.of(makeOffsets(readTables(tables, await unzip(packed))) === null)"
  assert run_scripts(SCRIPTS, main, tmp_path / "run", tables=tables.descriptions, packed=tables.pack()).tolist() == [1]
