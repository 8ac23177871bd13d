"""ER-NeRF and SyncTalk as methods on a ball for a head: cameras, what is learnt when, how fast, and that it is learnt."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tiny_world
from configs.demo import get_config
from rsatalker_jax import sharding
from rsatalker_jax.baselines.image import Subject, ernerf, make_drive, make_image_method
from rsatalker_jax.baselines.image.labels import LABELS
from rsatalker_jax.baselines.image.nerf_rendering import cell_centres, find_occupied, make_rays, sample_rays
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import head_vertices, load_head
from rsatalker_jax.training.optimizers import by_path
from splat_kernels import Config

SIZE, STEPS = 36, 100  # 80 steps of the head, 5 of its lips, 15 of the torso.


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
  small = dict(crop=32, levels=2, coarsest=4, finest=8, hidden=8, attention_hidden=8, lattice_points=24, samples=6, step=0.1, occupancy=8)
  config.baselines[name].update(small | dict(head_share=0.8, lips_share=0.05, torso_coarsest=4, torso_finest=8) | sizes)
  subject = Subject(head, np.zeros(2, np.float32), None, SIZE, SIZE, (1.0, 1.0, 1.0), 3, 2, Config(with_depth=False), None)
  method = make_image_method(config, subject)
  method.labels = lambda flame, camera: jnp.broadcast_to(SHOULDERS[..., None] * jnp.eye(4)[LABELS.index("body")], (1, SIZE, SIZE, 4))
  return method


# The picture is a disc; what of it lies in the lower rows is shoulders.
_ROWS, _COLUMNS = np.mgrid[:SIZE, :SIZE]
DISC = (_ROWS - 17) ** 2 + (_COLUMNS - 18) ** 2 < 144
SHOULDERS = (_ROWS >= 22).astype(np.float32)


@pytest.fixture(scope="module")
def fresh(head):
  return jax.jit(make_method(head).init)(jax.random.key(0))


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
  image = np.where(DISC[..., None], np.uint8([200, 120, 40]), np.uint8(255))
  boxes = {"face": [8, 6, 28, 20], "lower": [10, 14, 26, 20], "lips": [14, 14, 22, 22]}
  batch = {"image": image, "mask": DISC.astype(np.uint8) * 255, "boxes": {name: np.float32(box) for name, box in boxes.items()}}
  batch |= {"drive": one(drive_of(head), 1), "frame": np.int32(1), "flame": one(flame_of(), 1)}
  return jax.tree.map(lambda x: x[None], batch)


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
  occupied = np.asarray(find_occupied(method._first_occupancy())).reshape(-1)
  moved = np.asarray(head.weights)[:, 1] > 0.5
  surface = (np.asarray(head.v_template)[moved] - method.centre) / method.unit
  distance = np.linalg.norm(cell_centres(16, method.lattice.half)[:, None] - surface, axis=-1).min(axis=1) * method.unit
  reach = max(0.02, 2 * np.linalg.norm(method.lattice.half) / 16 * method.unit)
  np.testing.assert_array_equal(occupied, distance < reach)
  assert 0.1 < occupied.mean() < 0.95


def test_a_frame_is_all_of_its_rays_over_its_torso(head, fresh, monkeypatch):
  """Drawn in blocks of the rays that meet something, a frame is what all rays give, one by one."""
  monkeypatch.setattr(ernerf, "_BLOCK", 100)
  method, (params, buffers) = make_method(head), fresh
  params, drive = learnt(params), drive_of(head)
  grid = np.asarray(buffers["ernerf"]["occupancy"]) * (np.random.default_rng(0).random((8, 8, 8)) < 0.4)
  buffers = {"ernerf": {"occupancy": jnp.asarray(grid)}}
  drawn = jax.jit(method.draw)(params, buffers, drive)
  images = drawn["image"]
  assert images.shape == (2, SIZE, SIZE, 3)
  # Who draws alone does not know how many frames it was trained with.
  alone = ernerf.ErNerf(method.config, dataclasses.replace(method.subject, num_frames=0))
  np.testing.assert_array_equal(jax.jit(alone.draw)(params, buffers, drive)["image"], images)
  pixels = jnp.asarray(np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE)), axis=-1).reshape(-1, 2) + 0.5)

  @jax.jit
  def reference(shown):
    audio = method._apply(params, shown["speech"], method="hear")
    occupied = find_occupied(jnp.asarray(grid))
    rays, _, cut = method._render(params, occupied, shown, pixels, audio=audio, eyes=shown["eyes"][None], frame=0)
    behind = method._behind(params, shown, pixels, 0)
    _, there = sample_rays(*make_rays(method._camera(shown), shown["intrinsics"], pixels), occupied, method.lattice)
    cut = jnp.sum(cut) / jnp.sum(there.any(axis=-1))
    return rays, behind, cut, jnp.clip(rays.color + (1 - rays.alpha[:, None]) * behind, 0, 1).reshape(SIZE, SIZE, 3)

  for i in range(2):
    rays, behind, cut, expected = reference(one(drive, i))
    assert cut > 0.01
    np.testing.assert_allclose(drawn["cut_rays"][i], cut, rtol=1e-6)
    assert (np.asarray(rays.alpha) == 0).any() and (np.asarray(rays.alpha) > 0.2).any() and np.ptp(behind) > 0.1
    np.testing.assert_allclose(images[i], expected, atol=1e-5)


def test_rays_that_are_cut_off_are_counted(head):
  """Six points of a ray are kept. Where there are more, and less than 99 % of what is seen is in the six, something is lost."""
  method, drive, everywhere = make_method(head), one(drive_of(head)), jnp.ones((8, 8, 8), bool)
  pixels = jnp.asarray(np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE)), axis=-1).reshape(-1, 2) + 0.5)
  rays = make_rays(method._camera(drive), drive["intrinsics"], pixels)
  _, there = sample_rays(*rays, everywhere, dataclasses.replace(method.lattice, samples=method.lattice.points))
  more = np.mean(np.sum(there, axis=-1) > 6)
  assert 0.1 < more < 0.9

  def cut(density):
    said = lambda count: {"color": jnp.zeros((count, 3))} | {
        name: jnp.full(count, density) for name in ("density", "uncertainty", "audio_attention", "eye_attention")
    }
    method._apply = lambda params, points, *arguments, method: said(len(points))
    return float(method._render({}, everywhere, drive, pixels, audio=None, eyes=None, frame=0)[2].mean())

  hides = -np.log(0.01) / (6 * method.lattice.step)
  np.testing.assert_allclose(cut(0.99 * hides), more, rtol=1e-6)
  assert cut(1.01 * hides) == 0


def test_what_rays_lose_is_told_behind_the_last_frame(head, fresh):
  method, (params, buffers) = make_method(head), fresh
  params, drive = learnt(params), drive_of(head)
  cut = np.asarray(jax.jit(method.draw)(params, buffers, drive)["cut_rays"])
  said, three = [], jax.tree.map(lambda x: np.asarray(x)[[0, 1, 1]], dict(drive))
  frames = method.render(params, buffers, three, sharding.make_mesh(), chunk=2, say=said.append)
  assert sum(map(len, (next(frames), next(frames)))) == 3 and not said
  assert next(frames, None) is None
  (line,) = said
  assert cut[0] != cut[1] and f"{(cut[0] + 2 * cut[1]) / 3:.2%} of the rays" in line
  assert f"at most {cut.max():.2%}, of 3 frames" in line


@pytest.mark.parametrize(("name", "heeded", "ignored"), [("ernerf", "eyes", "controls"), ("synctalk", "controls", "eyes")])
def test_what_moves_a_frame(head, name, heeded, ignored):
  method = make_method(head, name)
  params, buffers = jax.jit(method.init)(jax.random.key(0))
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


class _Rendered(Exception):
  """What a method was to render, instead of rendering it."""


def rays_asked(method, head, step, seed=0, part="_learn_head"):
  """Pixels (of which centres are rendered), and eyes and shifts of lattices, of a step."""

  def stop(params, occupied, drive, pixels, *, audio, eyes, frame, shift=0.0):
    raise _Rendered(np.asarray(pixels), np.asarray(eyes), np.asarray(shift), int(frame))

  method._render, method._apply = stop, lambda *arguments, method: jnp.zeros(32)
  arguments = (jnp.int32(step),) if part == "_learn_head" else ()
  example = one(batch_of(head)) | {"shoulders": SHOULDERS}
  with pytest.raises(_Rendered) as rendered:
    getattr(method, part)({}, None, *arguments, example, jax.random.key(seed))
  pixels, *others = rendered.value.args
  assert np.all(pixels % 1 == 0.5)
  return (np.floor(pixels).astype(int), *others)


def test_half_of_the_rays_are_in_the_face(head):
  pixels, eyes, shift, frame = rays_asked(make_method(head), head, 3)
  in_face = (pixels[:, 0] >= 8) & (pixels[:, 0] < 28) & (pixels[:, 1] >= 6) & (pixels[:, 1] < 20)
  assert in_face[512:].all() and abs(in_face[:512].mean() - 20 * 14 / SIZE**2) < 0.06
  assert pixels[:512].min(axis=0).tolist() == [0, 0] and pixels[:512].max(axis=0).tolist() == [SIZE - 1] * 2
  assert shift.shape == (1024,) and shift.min() < 0.05 and shift.max() > 0.95 and 0 <= shift.min() <= shift.max() <= 1
  assert 0 < abs(eyes[0] - 0.9) <= 0.05 and frame == 1


def test_fine_tuning_renders_the_square_about_the_lips_in_turns(head):
  # The lips' middle is (18, 18), and a square of 32 pixels about it begins at (2, 2).
  square = np.stack(np.meshgrid(np.arange(2, 34), np.arange(2, 34)), axis=-1).reshape(-1, 2)
  np.testing.assert_array_equal(rays_asked(make_method(head), head, 80)[0], square)
  corners = np.stack([rays_asked(make_method(head), head, 81, seed)[0][0] for seed in range(12)])
  assert corners.min() >= 0 and corners.max() <= SIZE - 32 and len(np.unique(corners, axis=0)) > 3


def test_eyes_are_jittered_by_one_method_alone_and_not_for_the_torso(head):
  _, eyes, _, _ = rays_asked(make_method(head, "synctalk"), head, 3)
  np.testing.assert_array_equal(eyes, batch_of(head)["drive"]["controls"][0])
  pixels, eyes, shift, frame = rays_asked(make_method(head), head, 90, part="_learn_torso")
  np.testing.assert_array_equal(eyes, batch_of(head)["drive"]["eyes"])
  assert shift == 0 and frame == 1 and pixels.min(axis=0).tolist() == [0, 0] and pixels.max(axis=0).tolist() == [SIZE - 1] * 2


@pytest.mark.parametrize("step", [20, 80])
def test_what_rays_are_compared_with(head, step, monkeypatch):
  """The head alone over what is behind the rays: random colours, or the background where squares are to be pictures."""
  method, asked = make_method(head), []
  transparent = ernerf.Rays(jnp.zeros((1024, 3)), *[jnp.zeros(1024)] * 4)

  def render(params, occupied, drive, pixels, **_):
    asked.append(np.floor(pixels).astype(int))
    return transparent, (None, None), None

  def stop(switches, rays, target, in_face, in_lower, progress, fine_tuned, samples):
    raise _Rendered(*map(np.asarray, (rays.color, target, in_face, in_lower, progress, fine_tuned, samples)))

  method._render, method._apply = render, lambda *arguments, method: jnp.zeros(32)
  monkeypatch.setattr(ernerf, "head_terms", stop)
  batch = batch_of(head)
  with pytest.raises(_Rendered) as rendered:
    method._learn_head({}, None, jnp.int32(step), one(batch) | {"shoulders": SHOULDERS}, jax.random.key(0))
  behind, target, in_face, in_lower, progress, fine_tuned, samples = rendered.value.args
  (x, y), boxes = asked[0].T, one(batch["boxes"])
  seen = (DISC & (SHOULDERS == 0))[y, x]
  np.testing.assert_allclose(target, np.where(seen[:, None], np.array([200, 120, 40]) / 255, behind), atol=1e-6)
  assert 0.1 < seen.mean() < 0.9
  assert np.all(behind == 1) if step == 80 else np.ptp(behind, axis=0).min() > 0.95
  for found, name in ((in_face, "face"), (in_lower, "lower")):
    left, top, right, bottom = boxes[name]
    np.testing.assert_array_equal(found, (x >= left) & (x < right) & (y >= top) & (y < bottom))
  assert (progress, fine_tuned, samples) == ((1, True, 6) if step == 80 else (0.25, False, 6))


# --- What is learnt when


@pytest.fixture(scope="module")
def learn(head, fresh):
  """(params, step) -> terms and gradients."""
  method, batch = make_method(head), batch_of(head)

  @jax.jit
  def run(params, step):
    def loss(params):
      key = jax.random.fold_in(jax.random.key(1), step * (step > 50) * (step < 80))
      terms, each = method.loss(params, fresh[1], batch, key, step, {})
      assert set(each) == {"cut_rays"} and each["cut_rays"].shape == batch["frame"].shape
      return sum(terms.values()), terms

    (_, terms), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    return terms, gradients

  return lambda params, step: run(params, jnp.int32(step))


@pytest.fixture(scope="module")
def terms_at(learn, fresh):
  """Step -> terms and gradients of what something has been learnt by."""
  params = learnt(fresh[0])
  return lambda step: learn(params, step)


HEAD_TERMS = {"pixels", "uncertainty", "entropy", "audio_attention", "eye_attention"}


@pytest.mark.parametrize(("step", "expected"), [
    (0, {"pixels", "entropy"}),  # s = 0
    (15, HEAD_TERMS),
    (16, HEAD_TERMS | {"shift"}),
    (17, HEAD_TERMS),
    (32, HEAD_TERMS | {"shift"}),
    (80, HEAD_TERMS - {"uncertainty"} | {"lpips"}),
    (84, HEAD_TERMS - {"uncertainty"} | {"lpips"}),
    (85, {"torso", "torso_points"}),
])
def test_terms_of_each_phase(terms_at, step, expected):
  terms, gradients = terms_at(step)
  assert {name for name, term in terms.items() if term != 0} == expected
  moved = {name for name, group in gradients["ernerf"].items() if any(np.any(x) for x in jax.tree.leaves(group))}
  assert moved == ({"torso", "torso_codes"} if "torso" in expected else {"voice", "field", "codes"})


def test_terms_by_progress(terms_at):
  """Of the same rays: progress is the share of the head's steps, and stays 1 behind them."""
  ten, twenty, fifty = (terms_at(step)[0] for step in (10, 20, 50))
  for name in ("uncertainty", "audio_attention", "eye_attention"):
    np.testing.assert_allclose(twenty[name], 2 * ten[name], rtol=1e-4)
    np.testing.assert_allclose(fifty[name], 5 * ten[name], rtol=1e-4)


def test_lips_and_other_squares_take_turns(terms_at):
  """The lips' square counts a tenth of the others; here all squares are nearly the whole picture."""
  lips, anywhere = terms_at(80)[0]["lpips"], terms_at(81)[0]["lpips"]
  assert 5 < anywhere / lips < 20


def test_a_frame_has_its_own_codes(terms_at):
  for step, name in ((0, "codes"), (85, "torso_codes")):
    gradient = np.asarray(terms_at(step)[1]["ernerf"][name])
    assert not gradient[0].any() and gradient[1].any()


def test_it_learns_the_head_and_what_is_below(head, fresh, learn):
  """A flat disc: the head's field learns its upper part, colour and alpha, and the torso's picture the rest."""
  method, (params, buffers) = make_method(head, learning_rate=1e-2, plane_learning_rate=5e-2, lips_share=0.05), fresh
  optimizer = by_path(method.transforms(STEPS))
  state, move = optimizer.init(params), jax.jit(optimizer.update)
  for step in range(STEPS):
    updates, state = move(learn(params, step)[1], state, params)
    params = optax.apply_updates(params, updates)
  batch = batch_of(head)
  drive = one(batch["drive"])
  pixels = jnp.asarray(np.stack([_COLUMNS, _ROWS], axis=-1).reshape(-1, 2) + 0.5)

  @jax.jit
  def show(params):
    audio = method._apply(params, drive["speech"], method="hear")
    rays, *_ = method._render(params, find_occupied(buffers["ernerf"]["occupancy"]), drive, pixels, audio=audio, eyes=drive["eyes"][None], frame=1)
    return rays, method._behind(params, drive, pixels, 1)

  rays, behind = show(params)
  alpha = np.asarray(rays.alpha).reshape(SIZE, SIZE)
  upper, lower = DISC & (SHOULDERS == 0), DISC & (SHOULDERS == 1)
  met = alpha != 0
  assert alpha[upper & met].mean() > 0.8 and alpha[lower].mean() < 0.3 and alpha[~DISC].mean() < 0.2
  color = np.asarray(rays.color).reshape(SIZE, SIZE, 3)[upper & met].mean(axis=0) / alpha[upper & met].mean()
  np.testing.assert_allclose(color, np.array([200, 120, 40]) / 255, atol=0.1)
  image = np.asarray(rays.color + (1 - rays.alpha[:, None]) * behind).reshape(SIZE, SIZE, 3)
  truth = batch["image"][0] / 255
  assert np.mean((image - truth) ** 2) < 0.2 * np.mean((1 - truth) ** 2)


def test_rates_by_phase(head):
  method = make_method(head, steps=20, head_share=0.6, lips_share=0.2)
  params = jax.tree.map(lambda x: jnp.ones(x.shape), jax.eval_shape(method.init, jax.random.key(0))[0])
  optimizer = by_path(method.transforms(20))
  update, state = jax.jit(optimizer.update), optimizer.init(params)
  c = method.sizes
  for step in range(20):
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
        (group["field"]["planes"]["texels"], c.plane_learning_rate * in_head * 1.01),
        (group["torso"]["shift_net"]["Dense_0"]["kernel"], c.learning_rate * in_torso),
        (group["torso"]["points"], c.learning_rate * in_torso),
        (group["torso_codes"], c.learning_rate * in_torso),
        (group["torso"]["planes"]["texels"], c.plane_learning_rate * in_torso * 1.01),
    ):
      np.testing.assert_allclose(-np.asarray(found), expected, rtol=1e-4, atol=1e-12, err_msg=str(step))


def test_occupancy_is_updated_while_the_head_learns(head, fresh):
  method = make_method(head, occupancy_every=20)
  (between,) = method.between(STEPS)
  assert [step for step in range(1, STEPS + 1) if between.due(step)] == [20, 40, 60, 80]
  (params, buffers), drive, asked = fresh, drive_of(head), []

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
  other = [between.call(params, buffers, step, Film()) and asked[-1] for step in range(5, 60, 5)]
  assert set(other) == {0, 1}


@pytest.mark.parametrize("name", ["ernerf", "synctalk"])
def test_squares_larger_than_the_picture_are_refused(head, name):
  with pytest.raises(InputError, match=f"baselines.{name}.crop: found 37, expected at most the smaller side of the pictures, which are 36x36"):
    make_method(head, name, crop=37)
