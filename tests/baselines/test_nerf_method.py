"""ER-NeRF and SyncTalk as methods on a ball for a head: cameras, what is learnt when, how fast, and that it is learnt."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.demo import get_config
from rsatalker_jax.baselines.image import Subject, ernerf, make_drive, make_image_method
from rsatalker_jax.baselines.image.nerf_rendering import cell_centres, find_occupied, make_rays
from rsatalker_jax.baselines.image.pose import joint_transforms
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import head_vertices, load_head
from rsatalker_jax.training.optimizers import by_path
from splat_kernels import Config
from tests import tiny_world

SIZE, STEPS = 36, 20  # 12 steps of the head, 4 of its lips, 4 of the torso.


@pytest.fixture(scope="module")
def head(tmp_path_factory):
  path = tmp_path_factory.mktemp("head") / "head.npz"
  tiny_world.write_head(path)
  head = load_head(path)
  # The upper half turns with the neck; the lower stays with the body.
  weights = jnp.zeros_like(head.weights)
  upper = head.v_template[:, 1] > -0.03
  return dataclasses.replace(head, weights=weights.at[:, 1].set(upper).at[:, 0].set(~upper))


def make_method(head, name="ernerf", steps=STEPS, **sizes):
  config = get_config(name)
  config.avatar.steps = steps
  small = dict(crop=32, levels=2, coarsest=4, finest=8, hidden=8, attention_hidden=8, lattice_points=24, samples=8, step=0.1, occupancy=8)
  config.baselines[name].update(small | dict(head_share=0.6, lips_share=0.2, torso_coarsest=4, torso_finest=8) | sizes)
  subject = Subject(head, np.zeros(2, np.float32), None, SIZE, SIZE, (1.0, 1.0, 1.0), 3, 2, Config(with_depth=False), None)
  return make_image_method(config, subject)


NECKS = ((0.0, 0.0, 0.0), (0.2, 0.4, 0.1))


def flame_of():
  flame = {name: np.zeros((2, 3), np.float32) for name in ("rotation", "jaw", "translation")}
  return flame | {"expression": np.zeros((2, 50), np.float32), "neck": np.array(NECKS, np.float32), "eyes": np.zeros((2, 6), np.float32)}


def drive_of(head):
  rng = np.random.default_rng(0)
  view = np.diag([1.0, -1, -1, 1])
  view[:3, 3] = [0.01, 0.02, 0.6]
  intrinsics = np.array([[2.0 * SIZE, 0, SIZE / 2], [0, 2.0 * SIZE, SIZE / 2], [0, 0, 1]])
  speech = rng.normal(size=(2, 15, 3))
  drive = make_drive(make_method(head).subject, flame_of(), speech, np.tile(view, (2, 1, 1)), np.tile(intrinsics, (2, 1, 1)))
  return drive | {"eyes": np.array([0.2, 0.9], np.float32), "controls": rng.random((2, 7)).astype(np.float32)}


def batch_of(head):
  """A disc, the upper half of which is head by its labels."""
  rows, columns = np.mgrid[:SIZE, :SIZE]
  mask = (((rows - 17) ** 2 + (columns - 18) ** 2) < 144).astype(np.uint8) * 255
  image = np.where(mask[..., None] > 0, np.uint8([200, 120, 40]), np.uint8(255))
  boxes = {"face": [8, 6, 28, 20], "lower": [10, 14, 26, 20], "lips": [14, 14, 22, 22]}
  one = {"image": image, "mask": mask, "boxes": {name: np.array(box, np.float32) for name, box in boxes.items()}}
  batch = jax.tree.map(lambda x: np.stack([x] * 2), one)
  return batch | {"drive": drive_of(head), "frame": np.arange(2, dtype=np.int32), "flame": flame_of()}


def learnt(params, seed=0):
  """As if something had been learnt: of fresh parameters hardly anything depends on anything."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: x + jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32), params)


def one(tree, i=0):
  return jax.tree.map(lambda x: x[i], dict(tree))


# --- Where things are


def test_rays_through_a_vertex_pass_it_in_the_box(head):
  """However the head is turned, a vertex of it stays where it is in its box."""
  method, flame, drive = make_method(head), flame_of(), drive_of(head)
  moved = np.asarray(head.weights)[:, 1] > 0.5
  shape = jnp.zeros(2)
  rest = head_vertices(head, shape=shape, **{name: jnp.zeros_like(x[0]) for name, x in flame.items()})
  in_box = (np.asarray(rest)[moved] - method.centre) / method.unit
  assert np.abs(in_box / np.array(method.lattice.half)).max() < 1 and max(method.lattice.half) == 1
  np.testing.assert_allclose((in_box.max(axis=0) + in_box.min(axis=0)) / 2, 0, atol=1e-5)
  np.testing.assert_allclose((np.array(method.lattice.half) - in_box.max(axis=0)) * method.unit, 0.02, atol=1e-5)
  for i in range(2):
    posed = np.asarray(head_vertices(head, shape=shape, **one(flame, i)))[moved]
    seen = (posed @ drive["world_to_camera"][i][:3, :3].T + drive["world_to_camera"][i][:3, 3]) @ drive["intrinsics"][i].T
    pixels = jnp.asarray(seen[:, :2] / seen[:, 2:])
    origins, directions = make_rays(method._camera(one(drive, i)), drive["intrinsics"][i], pixels)
    aside = np.cross(in_box - np.asarray(origins), directions)
    np.testing.assert_allclose(np.linalg.norm(aside, axis=-1), 0, atol=2e-4)


def test_cells_near_the_head_are_occupied_first(head):
  method = make_method(head, occupancy=16)
  _, buffers = method.init(jax.random.key(0))
  occupied = np.asarray(find_occupied(buffers["ernerf"]["occupancy"])).reshape(-1)
  moved = np.asarray(head.weights)[:, 1] > 0.5
  surface = (np.asarray(head.v_template)[moved] - method.centre) / method.unit
  distance = np.linalg.norm(cell_centres(16, method.lattice.half)[:, None] - surface, axis=-1).min(axis=1) * method.unit
  reach = max(0.02, 2 * np.linalg.norm(method.lattice.half) / 16 * method.unit)
  np.testing.assert_array_equal(occupied, distance < reach)
  assert 0.1 < occupied.mean() < 0.95


def test_a_frame_is_all_of_its_rays_over_its_torso(head, monkeypatch):
  """Drawn in blocks of the rays that meet something, a frame is what all rays give, one by one."""
  monkeypatch.setattr(ernerf, "_BLOCK", 100)
  method = make_method(head)
  params, buffers = method.init(jax.random.key(0))
  params, drive = learnt(params), drive_of(head)
  grid = np.asarray(buffers["ernerf"]["occupancy"]) * (np.random.default_rng(0).random((8, 8, 8)) < 0.4)
  buffers = {"ernerf": {"occupancy": jnp.asarray(grid)}}
  images = jax.jit(method.draw)(params, buffers, drive)["image"]
  assert images.shape == (2, SIZE, SIZE, 3)
  pixels = jnp.asarray(np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE)), axis=-1).reshape(-1, 2) + 0.5)

  @jax.jit
  def reference(shown):
    audio = method._apply(params, shown["speech"], method="hear")
    rays, _ = method._render(
        params, find_occupied(jnp.asarray(grid)), shown, pixels, audio=audio, eyes=shown["eyes"][None], frame=0
    )
    behind = method._behind(params, shown, pixels, 0)
    return rays, behind, jnp.clip(rays.color + (1 - rays.alpha[:, None]) * behind, 0, 1).reshape(SIZE, SIZE, 3)

  for i in range(2):
    rays, behind, expected = reference(one(drive, i))
    assert (np.asarray(rays.alpha) == 0).any() and (np.asarray(rays.alpha) > 0.5).any() and np.ptp(behind) > 0.1
    np.testing.assert_allclose(images[i], expected, atol=1e-5)


@pytest.mark.parametrize(("name", "heeded", "ignored"), [("ernerf", "eyes", "controls"), ("synctalk", "controls", "eyes")])
def test_what_moves_a_frame(head, name, heeded, ignored):
  method = make_method(head, name)
  params, buffers = method.init(jax.random.key(0))
  params, drive, draw = learnt(params), drive_of(head), jax.jit(method.draw)
  image = lambda **changed: np.asarray(draw(params, buffers, one_frame | changed)["image"])
  one_frame = jax.tree.map(lambda x: x[:1], drive)
  first = image()
  np.testing.assert_array_equal(image(**{ignored: drive[ignored][1:]}), first)
  for key in (heeded, "speech", "head"):
    assert np.abs(image(**{key: drive[key][1:]}) - first).max() > 1e-3, key
  np.testing.assert_array_equal(image(body=drive["body"][1:] + 1), first)


def test_squares_are_squares_of_the_picture(head):
  method = make_method(head)
  image = np.random.default_rng(0).random((SIZE, SIZE))
  for centre, corner in (((18, 17), (2, 1)), ((0, 40), (0, 4)), ((36, 3), (4, 0))):
    pixels = np.asarray(method._square(jnp.array(centre)))
    x, y = corner
    np.testing.assert_array_equal(image[pixels[:, 1], pixels[:, 0]].reshape(32, 32), image[y : y + 32, x : x + 32])


def test_pixels_of_a_box_are_all_of_its_pixels(head):
  pixels = np.asarray(make_method(head)._draw_pixels(jax.random.key(0), jnp.array([3.0, 30.0, 6.0, 44.0]), 4000))
  assert set(pixels[:, 0]) == {3, 4, 5} and set(pixels[:, 1]) == set(range(30, SIZE))


# --- What is learnt when


@pytest.fixture(scope="module")
def terms_at(head):
  """Step -> terms and gradients."""
  method = make_method(head)
  params, buffers = method.init(jax.random.key(0))
  params, batch = learnt(params), batch_of(head)

  @jax.jit
  def run(step):
    def loss(params):
      terms, each = method.loss(params, buffers, batch, jax.random.key(1), step, {})
      assert not each
      return sum(terms.values()), terms

    return jax.value_and_grad(loss, has_aux=True)(params)

  return lambda step: (lambda out: (out[0][1], out[1]["ernerf"]))(run(jnp.int32(step)))


HEAD_TERMS = {"pixels", "uncertainty", "entropy", "audio_attention", "eye_attention"}


@pytest.mark.parametrize(("step", "expected"), [
    (0, {"pixels", "entropy"}),  # s = 0
    (5, HEAD_TERMS),
    (12, HEAD_TERMS - {"uncertainty"} | {"lpips"}),
    (15, HEAD_TERMS - {"uncertainty"} | {"lpips"}),
    (16, {"torso", "torso_points"}),
])
def test_terms_of_each_phase(terms_at, step, expected):
  terms, gradients = terms_at(step)
  assert {name for name, term in terms.items() if term != 0} == expected
  moved = {name for name, group in gradients.items() if any(np.any(x) for x in jax.tree.leaves(group))}
  assert moved == ({"torso", "torso_codes"} if "torso" in expected else {"voice", "field", "codes"})


def test_terms_by_progress(terms_at):
  """Between steps 3 and 6 of 12 progress doubles, and the rays are the same."""
  three, six, eleven = (terms_at(step)[0] for step in (3, 6, 11))
  for name in ("uncertainty", "audio_attention", "eye_attention"):
    np.testing.assert_allclose(six[name], 2 * three[name], rtol=1e-4)
    np.testing.assert_allclose(eleven[name], 11 / 3 * three[name], rtol=1e-4)


def test_lips_and_other_squares_take_turns(terms_at):
  """The lips' square counts a tenth of the others; here all squares are nearly the whole picture."""
  lips, anywhere = terms_at(12)[0]["lpips"], terms_at(13)[0]["lpips"]
  assert 5 < anywhere / lips < 20


def test_each_sixteenth_step_shifts_points(head):
  method = make_method(head, steps=200, head_share=0.9, lips_share=0.05)
  params, buffers = method.init(jax.random.key(0))
  run = jax.jit(lambda step: method.loss(learnt(params), buffers, batch_of(head), jax.random.key(1), step, {})[0]["shift"])
  assert [bool(run(jnp.int32(step)) > 0) for step in (0, 15, 16, 17, 32)] == [False, False, True, False, True]


def test_rates_by_phase(head):
  method = make_method(head)
  params = jax.tree.map(jnp.ones_like, method.init(jax.random.key(0))[0])
  optimizer = by_path(method.transforms(STEPS))
  update, state = jax.jit(optimizer.update), optimizer.init(params)
  c = method.sizes
  for step in range(STEPS):
    # The same gradient always: Adam without momentum moves by the rate.
    updates, state = update(params, state, params)
    in_head = c.final_share ** (step / 12) if step < 12 else c.lips_final_share ** (step / 16) if step < 16 else 0.0
    in_torso = 0.0 if step < 16 else c.final_share ** ((step - 16) / 4)
    group = updates["ernerf"]
    for found, expected in (
        (group["field"]["color_net"]["Dense_0"]["kernel"], c.learning_rate * in_head),
        (group["codes"], c.learning_rate * in_head),
        (group["voice"]["windows"]["Conv_0"]["kernel"], c.learning_rate * in_head),
        (group["voice"]["attention"]["Conv_0"]["kernel"], 5 * c.learning_rate * in_head * (1 + 1e-4)),
        (group["field"]["planes"]["level_0"], c.plane_learning_rate * in_head * 1.01),
        (group["torso"]["shift_net"]["Dense_0"]["kernel"], c.learning_rate * in_torso),
        (group["torso"]["points"], c.learning_rate * in_torso),
        (group["torso_codes"], c.learning_rate * in_torso),
        (group["torso"]["planes"]["level_1"], c.plane_learning_rate * in_torso * 1.01),
    ):
      np.testing.assert_allclose(-np.asarray(found), expected, rtol=1e-4, atol=1e-12, err_msg=str(step))


def test_occupancy_is_updated_while_the_head_learns(head):
  method = make_method(head, occupancy_every=5)
  (between,) = method.between(STEPS)
  assert [step for step in range(1, STEPS + 1) if between.due(step)] == [5, 10, 15]
  params, buffers = method.init(jax.random.key(0))
  drive, asked = drive_of(head), []

  class Film:
    def __len__(self):
      return 2

    def drive(self, frames):
      asked.extend(frames)
      return jax.tree.map(lambda x: x[frames], drive)

  same, after = between.call(params, buffers, 5, Film())
  assert same is params and len(asked) == 1 and 0 <= asked[0] < 2
  old, new = (np.asarray(x["ernerf"]["occupancy"]) for x in (buffers, after))
  # A fresh field has density near 1 everywhere, which is what the cells at the head begin with.
  assert new.min() > 0.5 and np.all(new >= 0.95 * old)
  between.call(params, buffers, 10, Film())
  other = [between.call(params, buffers, step, Film()) and asked[-1] for step in range(5, 60, 5)]
  assert set(other) == {0, 1}


def test_it_learns_the_head_and_what_is_below(head):
  """Flat colours, in a few dozen steps: skin on the disc, white beside it, and no shoulders in the head's field."""
  method = make_method(head, steps=150, learning_rate=1e-2, plane_learning_rate=5e-2, lips_share=0.01)
  params, buffers = method.init(jax.random.key(0))
  optimizer = by_path(method.transforms(150))
  state, batch = optimizer.init(params), batch_of(head)
  # The head is turned straight in both frames: one picture.
  batch["drive"] = jax.tree.map(lambda x: np.stack([x[0]] * 2), batch["drive"])
  batch["flame"] = jax.tree.map(lambda x: np.stack([x[0]] * 2), batch["flame"])

  @jax.jit
  def step_once(params, state, buffers, step):
    def loss(params):
      terms, _ = method.loss(params, buffers, batch, jax.random.fold_in(jax.random.key(1), step), step, {})
      return sum(terms.values())

    updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  for step in range(150):
    params, state = step_once(params, state, buffers, jnp.int32(step))
  image = np.asarray(jax.jit(method.draw)(params, buffers, batch["drive"])["image"][0])
  truth = batch["image"][0] / 255
  assert np.mean((image - truth) ** 2) < 0.2 * np.mean((1 - truth) ** 2)
  pixels = jnp.array([[18.5, 10.5], [18.5, 27.5]])
  shown = one(batch["drive"])
  rays, _ = method._render(
      params, find_occupied(buffers["ernerf"]["occupancy"]), shown, pixels,
      audio=method._apply(params, shown["speech"], method="hear"), eyes=shown["eyes"][None], frame=0,
  )
  labels = method.labels(batch["flame"], method.subject.camera(batch["drive"]))[0]
  assert labels[27, 18, 3] > 0.9 and labels[10, 18, 3] < 0.1
  assert rays.alpha[0] > 0.8 and rays.alpha[1] < 0.3


@pytest.mark.parametrize("name", ["ernerf", "synctalk"])
def test_squares_larger_than_the_picture_are_refused(head, name):
  with pytest.raises(InputError, match=f"baselines.{name}.crop: found 37, expected at most the smaller side of the pictures, which are 36x36"):
    make_method(head, name, crop=37)
