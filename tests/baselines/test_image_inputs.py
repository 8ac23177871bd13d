"""What image-based baselines see of a frame: windows of speech, planes' samples, head and camera, eyes, boxes, labels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import oracles
import tiny_world
from rsatalker_jax.baselines.image import audio, boxes, controls, labels, planes, pose
from rsatalker_jax.head import head_vertices, load_head
from splat_kernels import Camera


@pytest.fixture(scope="module")
def head(tmp_path_factory):
  path = tmp_path_factory.mktemp("head") / "head.npz"
  tiny_world.write_head(path)
  return load_head(path)


def flame_of(seed, frames=3):
  r = np.random.default_rng(seed)
  draw = lambda width: r.normal(size=(frames, width)).astype(np.float32)
  return {
      "expression": draw(50), "rotation": 0.5 * draw(3), "neck": 0.4 * draw(3), "jaw": 0.1 * draw(3), "eyes": 0 * draw(6),
      "translation": 0.1 * draw(3),
  }  # fmt: skip


def test_a_frame_hears_eight_features_before_it_and_six_after():
  features = np.arange(40, dtype=np.float32)[:, None] * [1, -1]
  heard = audio.speech_around(features, np.array([20, 2, 38]))
  assert heard.shape == (3, 15, 2)
  np.testing.assert_array_equal(heard[0, :, 0], np.arange(12, 27))
  np.testing.assert_array_equal(heard[1, :, 0], [0] * 6 + list(range(9)))
  np.testing.assert_array_equal(heard[2, :, 0], list(range(30, 40)) + [0] * 5)
  np.testing.assert_array_equal(heard[..., 1], -heard[..., 0])


def test_windows_are_those_of_the_neighbours():
  """Window k is the one of frame i + k − 4: features of the four frames before that one, its own and of three behind."""
  speech = audio.speech_around(np.arange(100, dtype=np.float32)[:, None], np.array([50]))
  windows = audio.audio_windows(speech)[0, :, :, 0]
  for k in range(8):
    middle = 50 + k - 4
    np.testing.assert_array_equal(windows[k], np.arange(middle - 4, middle + 4))


def test_attention_over_neighbours_is_what_numpy_makes_of_its_parameters():
  codes = np.random.default_rng(0).normal(size=(2, 8, 32)).astype(np.float32)
  module = audio.AudioAttention()
  params = module.init(jax.random.key(1), codes)
  p = jax.tree.map(np.asarray, params["params"])
  leaky = lambda x: np.where(x > 0, x, 0.02 * x)
  for code, found in zip(codes, module.apply(params, codes)):
    x = code
    for i in range(5):
      padded = np.pad(x, ((1, 1), (0, 0)))
      kernel, bias = p[f"Conv_{i}"]["kernel"], p[f"Conv_{i}"]["bias"]
      x = leaky(np.stack([sum(padded[t + k] @ kernel[k] for k in range(3)) for t in range(8)]) + bias)
    logits = x[:, 0] @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
    weights = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(found, weights @ code, rtol=1e-5, atol=1e-6)


def test_audio_net_has_the_published_size():
  """30,720 parameters for 29 classes: of this window of 8, since no convolution knows how long it is."""
  params = jax.eval_shape(audio.AudioNet(32).init, jax.random.key(0), jnp.zeros((1, 8, 29)))["params"]
  assert sum(x.size for x in jax.tree.leaves(params)) == 30_720


def test_all_heard_features_count_and_any_width_is_heard():
  module = audio.SpeechCode()
  speech = jnp.asarray(np.random.default_rng(0).normal(size=(1, 15, 7)), jnp.float32)
  params = module.init(jax.random.key(0), speech)
  assert set(params["params"]) == {"windows", "attention"}
  gradient = jax.grad(lambda x: jnp.sum(module.apply(params, x) ** 2))(speech)
  assert np.all(np.abs(np.asarray(gradient)).max(axis=-1) > 0)


@oracles.needs("torch")
@pytest.mark.parametrize("border", [True, False])
def test_planes_are_sampled_as_by_torch(border):
  import torch

  r = np.random.default_rng(0)
  plane, points = r.normal(size=(5, 7, 3)).astype(np.float32), r.uniform(-1.3, 1.3, size=(50, 2)).astype(np.float32)
  points[:3] = [[-1, -1], [1, 1], [0, 1]]
  grid = torch.tensor(points)[None, :, None]
  image = torch.tensor(plane).permute(2, 0, 1)[None]
  wanted = torch.nn.functional.grid_sample(image, grid, align_corners=True, padding_mode="border" if border else "zeros")
  found = planes.sample_plane(jnp.asarray(plane), jnp.asarray(points), border=border)
  np.testing.assert_allclose(found, wanted[0, :, :, 0].T.numpy(), rtol=1e-4, atol=1e-5)


def test_head_and_body_are_where_the_vertices_are(head):
  """Points that only the root joint moves, and only the neck: the transforms take them from rest to where FLAME poses them."""
  flame, shape = flame_of(0), np.array([0.7, -0.4], np.float32)
  offset = 0.01 * np.random.default_rng(1).normal(size=head.v_template.shape).astype(np.float32)
  flame["expression"][:] = 0
  for name, joint in (("body", 0), ("head", 1)):
    rigid = dataclasses.replace(head, weights=jnp.zeros_like(head.weights).at[:, joint].set(1.0))
    rest = {key: np.zeros_like(x[0]) for key, x in flame.items()}
    place = lambda pose: head_vertices(rigid, shape=shape, static_offset=offset, **pose)
    found = pose.joint_transforms(head, shape, offset, flame)[name]
    for i in range(3):
      wanted = place({key: x[i] for key, x in flame.items()})
      moved = np.asarray(place(rest)) @ np.asarray(found[i, :3, :3]).T + np.asarray(found[i, :3, 3])
      np.testing.assert_allclose(moved, wanted, atol=2e-6)


def test_the_expression_does_not_reach_the_pose(head):
  flame = flame_of(0)
  other = flame | {"expression": flame["expression"] + 1, "jaw": flame["jaw"] + 1}
  for name, found in pose.joint_transforms(head, np.zeros(2), None, flame).items():
    np.testing.assert_array_equal(found, pose.joint_transforms(head, np.zeros(2), None, other)[name])


def test_the_camera_is_seen_from_the_head():
  """By hand: rotations of scipy, and a point that both ways put at the same place before the camera."""
  turn = lambda angles, shift: np.block([[Rotation.from_euler("xyz", angles).as_matrix(), np.c_[shift]], [np.zeros(3), 1]])
  head_to_world, world_to_camera = turn([0.1, -0.3, 0.2], [0.1, 0.2, 0.3]), turn([0.5, 0.1, -0.2], [0.0, -0.4, 1.1])
  found = pose.camera_to_head(jnp.asarray(world_to_camera), jnp.asarray(head_to_world))
  np.testing.assert_allclose(found, np.linalg.inv(head_to_world) @ np.linalg.inv(world_to_camera), atol=1e-6)
  # The camera's centre in the head's frame.
  centre = np.linalg.inv(head_to_world) @ np.linalg.inv(world_to_camera) @ [0, 0, 0, 1]
  np.testing.assert_allclose(found[:, 3], centre, atol=1e-6)


def test_eyes_and_brows_are_found_by_name(head):
  names = [f"other{i}" for i in range(43)]
  seven = ["browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight", "eyeBlinkLeft", "eyeBlinkRight"]
  for i, name in enumerate(seven):
    names.insert(5 * i + 2, name)
  told = controls.Controls.of(dataclasses.replace(head, expression_names=tuple(names)))
  expression = np.random.default_rng(0).uniform(size=(4, 50)).astype(np.float32)
  of = lambda name: expression[:, names.index(name)]
  np.testing.assert_array_equal(told.upper_face(expression), np.stack([of(name) for name in seven], axis=1))
  np.testing.assert_allclose(told.eyes(expression), (of("eyeBlinkLeft") + of("eyeBlinkRight")) / 2, rtol=1e-6)
  assert told.eyes(expression + 2).max() == 1 and told.eyes(expression - 2).min() == 0
  unnamed = controls.Controls.of(head)
  assert not unnamed.eyes(expression).any() and unnamed.upper_face(expression).shape == (4, 7)


def test_boxes_enclose_the_vertices_as_the_camera_sees_them(monkeypatch):
  monkeypatch.setattr(boxes, "_CHUNK", 2)  # Of three frames.
  head = load_head("assets/head/demo_head.npz")
  flame = flame_of(3, 3)
  flame["expression"] = np.clip(flame["expression"], 0, 0.3)
  shape, offset = np.asarray(head.identities[1]), 1e-3 * np.random.default_rng(1).normal(size=head.v_template.shape).astype(np.float32)
  view = np.diag([1.0, -1, -1, 1]).astype(np.float32)
  view[:3, 3] = [0.0, 0.0, 1.1]
  intrinsics = np.array([[800, 0, 120], [0, 700, 130], [0, 0, 1]], np.float32)
  found = boxes.Boxes.of(head, shape, offset).find(flame, np.stack([view] * 3), np.stack([intrinsics] * 3))
  region, names = np.asarray(head.region_masks), list(head.region_names)
  face = np.unique(np.asarray(head.faces)[region[[names.index(n) for n in names if n not in ("scalp", "neck")]].any(axis=0)])
  template = np.asarray(head.v_template)
  nose = face[np.argmax(template[face, 2])]
  parts = {"face": face, "lower": face[template[face, 1] <= template[nose, 1]]}
  lips = np.unique(np.asarray(head.faces)[region[names.index("lips")]])
  for i in range(3):
    vertices = np.asarray(head_vertices(head, shape=shape, static_offset=offset, **{k: x[i] for k, x in flame.items()}))
    seen = vertices @ view[:3, :3].T + view[:3, 3]
    pixels = np.stack([800 * seen[:, 0] / seen[:, 2] + 120, 700 * seen[:, 1] / seen[:, 2] + 130], axis=1)
    for name, part in parts.items():
      np.testing.assert_allclose(found[name][i], [*pixels[part].min(axis=0), *pixels[part].max(axis=0)], atol=2e-2)
    left, top, right, bottom = found["lips"][i]
    low, high = pixels[lips].min(axis=0), pixels[lips].max(axis=0)
    np.testing.assert_allclose([(left + right) / 2, (top + bottom) / 2], (low + high) / 2, atol=2e-2)
    np.testing.assert_allclose([right - left, bottom - top], 1.2 * np.max(high - low), atol=4e-2)


def test_a_head_without_a_mouth_has_no_box_of_its_lips(head):
  found = boxes.Boxes.of(head, np.zeros(2), None).find(flame_of(0), *np.tile(np.eye(4), (1, 3, 1, 1)), np.tile(np.eye(3), (3, 1, 1)))
  assert not found["lips"].any()
  assert not np.asarray(boxes.box_mask(jnp.asarray(found["lips"]), 8, 8)).any()


def test_a_box_holds_the_pixels_whose_centres_lie_in_it():
  mask = np.asarray(boxes.box_mask(jnp.array([[1.4, 0.6, 3.5, 9.0]]), 6, 4))[0]
  wanted = np.zeros((4, 6))
  wanted[1:, 1:3] = 1  # x centres 1.5 and 2.5; y centres 1.5 … 3.5.
  np.testing.assert_array_equal(mask, wanted)


def test_crops_stay_inside_the_image():
  image = np.arange(2 * 8 * 10 * 3, dtype=np.float32).reshape(2, 8, 10, 3)
  found = boxes.crop(jnp.asarray(image), jnp.array([[5.2, 3.0], [9.9, -4.0]]), 4)
  np.testing.assert_array_equal(found[0], image[0, 1:5, 3:7])
  np.testing.assert_array_equal(found[1], image[1, :4, 6:])


def test_labels_lie_where_their_regions_are():
  """The demo's head from the front: hair above, the body below, the head between; shares sum to at most 1."""
  head = load_head("assets/head/demo_head.npz")
  view = np.diag([1.0, -1, -1, 1]).astype(np.float32)
  view[:3, 3] = [0.0, 0.0, 1.1]
  camera = Camera(jnp.asarray(view)[None], jnp.array([[[213.0, 0, 32], [0, 213, 32], [0, 0, 1]]]), 64, 64)
  flame = {name: np.zeros_like(x[:1]) for name, x in flame_of(0).items()}
  found = np.asarray(labels.make_labels(head, np.zeros(24), None)(flame, camera))[0]
  assert found.shape == (64, 64, 4) and found.sum(axis=-1).max() < 1 + 1e-5
  at = lambda x, y: labels.LABELS[int(np.argmax(found[round(32 - 213 * y / 1.1), round(32 + 213 * x / 1.1)]))]
  assert at(0, 0.12) == "hair" and at(0, 0.0) == "head" and at(0.06, -0.15) == "body"
  assert found[..., labels.LABELS.index("mouth")].sum() > 0 and found[0, 0].sum() < 1e-3
