"""Vertices against a head whose vertices are written down, and against the whole demo head posed by itself."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rsatalker_jax.evaluation import mesh_metrics
from rsatalker_jax.head import HeadModel, head_vertices, load_head

HEAD = pathlib.Path(__file__).resolve().parents[2] / "assets" / "head" / "demo_head.npz"


def make_head(regions):
  """Twelve vertices in four triangles that no joint moves: vertex v moves along x by coefficient v, a unit a metre."""
  directions = np.zeros((12, 3, 50), np.float32)
  directions[np.arange(12), 0, np.arange(12)] = 1.0
  template = np.zeros((12, 3), np.float32)
  template[:, 1] = np.arange(12)
  weights = np.zeros((12, 5), np.float32)
  weights[:, 0] = 1.0
  return HeadModel(
      v_template=jnp.asarray(template), shape_directions=jnp.zeros((12, 3, 0)), expression_directions=jnp.asarray(directions),
      pose_directions=jnp.zeros((12, 3, 36)), joint_regressor=jnp.full((5, 12), 1 / 12), weights=jnp.asarray(weights),
      faces=jnp.arange(12).reshape(4, 3), region_names=tuple(regions),
      region_masks=jnp.asarray([[face in faces for face in range(4)] for faces in regions.values()]),
  )  # fmt: skip


FLAME = {"lips": [0], "forehead": [1], "eye_region": [3], "nose": [2]}  # Vertices 0-2; 3-5 and 9-11.


def test_errors_of_known_vertices(monkeypatch):
  monkeypatch.setattr(mesh_metrics, "_CHUNK", 32)  # 100 frames are four chunks, the last one of 4.
  metrics = mesh_metrics.MeshMetrics(mesh_metrics.find_face_parts(make_head(FLAME)))
  rng = np.random.default_rng(0)
  pred, target = (0.01 * rng.normal(size=(100, 56)).astype(np.float32) for _ in range(2))
  speaking = rng.uniform(size=100) < 0.5
  kinds = {"speaking": speaking, "all": np.ones(100, bool), "rare": np.arange(100) < 24}
  scores = metrics.score(pred, target, kinds)
  assert set(scores) == {"lve/speaking", "fdd/speaking", "lve/all", "fdd/all"}
  for kind in ("speaking", "all"):
    p, t = (1e3 * x[kinds[kind]].astype(float) for x in (pred, target))
    largest = np.abs(p - t)[:, :3].max(axis=1)
    assert scores[f"lve/{kind}"] == pytest.approx(np.sqrt(np.mean(largest**2)), rel=1e-4)
    upper = [3, 4, 5, 9, 10, 11]
    spread = [np.abs(x[:, upper]).std(axis=0) for x in (p, t)]
    assert scores[f"fdd/{kind}"] == pytest.approx(np.mean(np.abs(spread[0] - spread[1])), rel=1e-4)
  # The head's rotation does not enter.
  turned = pred + np.float32([0] * 53 + [0.3, -0.2, 0.1])
  assert metrics.score(turned, target, kinds) == pytest.approx(scores)


def test_the_demo_head_is_posed_as_a_whole_would_be():
  head = load_head(HEAD)
  parts = mesh_metrics.find_face_parts(head)
  rng = np.random.default_rng(0)
  pred, target = (np.concatenate([rng.uniform(0, 0.5, (30, 50)), rng.uniform(0, 0.2, (30, 3)), np.ones((30, 3))], 1).astype(np.float32)
                  for _ in range(2))  # fmt: skip
  scores = mesh_metrics.MeshMetrics(parts).score(pred, target, {"all": np.ones(30, bool)})
  zero = jnp.zeros(3)
  pose = jax.jit(jax.vmap(lambda m: head_vertices(head, shape=zero[:0], expression=m[:50], rotation=zero, neck=zero, jaw=m[50:53],
                                                  eyes=jnp.zeros(6), translation=zero)))  # fmt: skip
  p, t, still = (np.asarray(pose(x), float) for x in (pred, target, np.zeros((1, 56), np.float32)))
  region = lambda name: np.unique(np.asarray(head.faces)[np.asarray(head.region_masks)[head.region_names.index(name)]])
  lips, skin = region("lips"), region("skin")
  eyes = np.concatenate([region("eye_left"), region("eye_right")])
  height = np.asarray(head.v_template)[:, 1]
  upper = skin[height[skin] > height[eyes].min()]
  assert (parts.lips, parts.upper) == (len(lips), len(upper)) and 500 < len(upper) < len(skin) / 1.2
  apart = 1e3 * np.linalg.norm(p - t, axis=-1)[:, lips].max(axis=1)
  assert scores["lve/all"] == pytest.approx(np.sqrt(np.mean(apart**2)), rel=1e-3)
  spread = [1e3 * np.linalg.norm(x - still, axis=-1)[:, upper].std(axis=0) for x in (p, t)]
  assert scores["fdd/all"] == pytest.approx(np.mean(np.abs(spread[0] - spread[1])), rel=1e-3)


def test_heads_without_regions_have_no_parts():
  assert mesh_metrics.find_face_parts(make_head({})) is None
  assert mesh_metrics.find_face_parts(make_head({"lips": [0], "forehead": [1]})) is None
  parts = mesh_metrics.find_face_parts(make_head(FLAME))
  assert (parts.lips, parts.upper) == (3, 6)
