"""Under JAX's transformations an image and its gradients are what they are without."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from splat_kernels import Camera, Config, rasterize
from splat_kernels.specs import Spec, make_scene
from splat_kernels.testing import ARRAYS, of

SPEC = Spec(24, 40, 24, 40.0, 0.12, batch=4, seed=9)
CONFIG = Config(max_intersections=256)
TILED = ("xla", "pallas_triton", "pallas_mosaic_tpu")


@pytest.fixture(scope="module")
def scene() -> dict:
  return {key: jnp.asarray(value) for key, value in make_scene(SPEC).items() if key in ARRAYS}


def camera() -> Camera:
  return make_scene(SPEC)["camera"]


def draw_frames(arrays: dict, implementation: str, pose=None):
  """A loss of frames of their own, each with a background and weights of its own: (*b,); and what was drawn."""
  at = camera() if pose is None else dataclasses.replace(camera(), world_to_camera=pose)
  output = rasterize(**arrays, camera=at, config=CONFIG, **of(implementation))
  shape = output.image.shape[-3:]
  weights = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
  value = jnp.sum(output.image * weights, axis=(-3, -2, -1)) + jnp.sum(output.depth * output.alpha, axis=(-2, -1))
  return value, (output.image, output.intersections)


def loss(arrays: dict, implementation: str):
  return draw_frames(arrays, implementation)[0]


@functools.cache
def in_a_batch(implementation: str):
  """A program from frames to values, gradients of the sum of all frames, and what was drawn."""

  def total(arrays):
    values, drawn = draw_frames(arrays, implementation)
    return jnp.sum(values), (values, drawn)

  differentiate = jax.jit(jax.grad(total, has_aux=True))

  def run(arrays):
    gradients, (values, drawn) = differentiate(arrays)
    return values, gradients, drawn

  return run


@functools.cache
def expected(implementation: str):
  """Of the scene: values, gradients, and what was drawn."""
  return in_a_batch(implementation)({key: jnp.asarray(value) for key, value in make_scene(SPEC).items() if key in ARRAYS})


def assert_close(value, other):
  for a, b in zip(jax.tree.leaves(value), jax.tree.leaves(other), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.max(jnp.abs(b))))


@pytest.mark.parametrize("implementation", TILED)
def test_vmap_is_a_leading_dimension(scene, implementation):
  values, gradients, _ = expected(implementation)
  assert_close(jax.jit(jax.vmap(jax.value_and_grad(lambda arrays: loss(arrays, implementation))))(scene), (values, gradients))


def test_vmap_does_not_make_loops_of_its_own(scene):
  # An axis of `vmap` that reaches the walk turns its conditionals into selections: 16 times slower, and no value wrong.
  arguments = functools.partial(loss, implementation="xla")
  conditionals = lambda function: str(jax.make_jaxpr(function)(scene)).count("cond[")
  assert conditionals(jax.vmap(arguments)) == conditionals(arguments) > 5


@pytest.mark.parametrize("implementation", ["xla", "pallas_triton"])
def test_vmap_of_vmap_and_of_what_is_shared(scene, implementation):
  _, gradients, _ = expected(implementation)
  pairs = jax.tree.map(lambda a: a.reshape(2, 2, *a.shape[1:]), scene)
  twice = jax.vmap(jax.vmap(lambda arrays: loss(arrays, implementation)))
  got = jax.jit(jax.grad(lambda arrays: jnp.sum(twice(arrays))))(pairs)
  assert_close(jax.tree.map(lambda a: a.reshape(4, *a.shape[2:]), got), gradients)

  first = {key: a[0] for key, a in scene.items()}
  colors = lambda c: jax.vmap(lambda c: loss({**first, "colors": c}, implementation))(c)
  repeated = {key: jnp.broadcast_to(a, (4, *a.shape)) for key, a in first.items()}
  values, *_ = in_a_batch(implementation)({**repeated, "colors": scene["colors"]})
  assert_close(jax.jit(colors)(scene["colors"]), values)


@pytest.mark.parametrize("implementation", ["xla", "pallas_triton"])
def test_scan_over_frames(scene, implementation):
  _, gradients, _ = expected(implementation)
  frames = lambda arrays: jax.lax.scan(lambda c, one: (c + loss(one, implementation), None), 0.0, arrays)[0]
  assert_close(jax.jit(jax.grad(frames))(scene), gradients)


@pytest.mark.parametrize("implementation", ["xla", "pallas_triton"])
def test_checkpoint_gives_the_same_and_saves_nothing_the_first_time(scene, implementation):
  _, gradients, _ = expected(implementation)
  total = jax.checkpoint(lambda arrays: jnp.sum(loss(arrays, implementation)))
  assert_close(jax.jit(jax.grad(total))(scene), gradients)


def results_of_kernels(jaxpr, name: str) -> list[int]:
  """How many results each kernel of a name has, in the order in which a program runs them."""
  found = []
  for equation in jaxpr.eqns:
    if equation.primitive.name == "pallas_call":
      if name in str(equation.params["name"]):
        found.append(len(equation.outvars))
      continue
    for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
      if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
        found += results_of_kernels(getattr(inner, "jaxpr", inner), name)
  return found


def test_checkpoint_runs_no_kernel_twice_that_saves(scene):
  # The first forward pass has one result; the one of the backward pass has what that reads again, too.
  total = lambda arrays: jnp.sum(loss(arrays, "pallas_triton"))
  run = lambda function: results_of_kernels(jax.make_jaxpr(jax.grad(function))(scene).jaxpr, "splat_forward")
  (saving,) = run(total)
  assert saving > 1 and run(jax.checkpoint(total)) == [1, saving]


@pytest.mark.parametrize("implementation, check_vma", [("xla", True), ("xla", False), ("pallas_triton", False)])
def test_shard_map(scene, implementation, check_vma):
  values, gradients, drawn = expected(implementation)
  mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
  frames = PartitionSpec("data")
  poses = jnp.broadcast_to(camera().world_to_camera, (4, 4, 4))
  local = jax.vmap(jax.value_and_grad(lambda arrays, pose: draw_frames(arrays, implementation, pose), has_aux=True))
  spread = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=frames, out_specs=frames, check_vma=check_vma))
  (got, got_drawn), got_gradients = spread(scene, poses)
  assert got_drawn[0].sharding.spec[0] == "data"
  np.testing.assert_array_equal(got_drawn[1], drawn[1])
  assert_close((got, got_drawn[0], got_gradients), (values, drawn[0], gradients))


def test_frames_on_an_explicit_mesh_stay_where_they_are(scene):
  _, gradients, _ = expected("xla")
  mesh = jax.make_mesh((2,), ("data",))  # Explicit, JAX's default.
  frames = NamedSharding(mesh, PartitionSpec("data"))
  with jax.set_mesh(mesh):
    spread = jax.device_put(scene, frames)

    def total(arrays):
      values, (image, _) = draw_frames(arrays, "xla")
      return jnp.sum(values), image

    got, image = jax.jit(jax.grad(total, has_aux=True))(spread)
  assert image.sharding.is_equivalent_to(frames, image.ndim)
  assert got["means"].sharding.is_equivalent_to(frames, 3)
  assert_close(jax.device_get(got), jax.device_get(gradients))


def test_gaussians_sharded_over_a_mesh_are_refused_by_name(scene):
  mesh = jax.make_mesh((2,), ("data",))
  with jax.set_mesh(mesh):
    spread = jax.device_put(scene, NamedSharding(mesh, PartitionSpec(None, "data")))
    with pytest.raises(ValueError, match="sharded as .*only leading dimensions, which are frames"):
      rasterize(**spread, camera=camera(), config=CONFIG, implementation="xla")


@pytest.fixture(scope="module")
def few() -> dict:
  scene = make_scene(dataclasses.replace(SPEC, batch=1, num=5, width=16, height=16))
  return {key: jnp.asarray(scene[key][0]) for key in ARRAYS}


def small_loss(arrays: dict, implementation: str):
  at = dataclasses.replace(camera(), width=16, height=16)
  output = rasterize(**arrays, camera=at, config=Config(max_intersections=64), **of(implementation))
  return jnp.sum(output.image**2) + jnp.sum(output.alpha)


def test_the_reference_is_differentiable_in_every_mode(few):
  direction = jax.tree.map(lambda a: jnp.asarray(np.random.default_rng(1).normal(size=a.shape), jnp.float32), few)
  total = lambda arrays: small_loss(arrays, "reference")
  _, along = jax.jit(lambda arrays: jax.jvp(total, (arrays,), (direction,)))(few)
  gradients = jax.jit(jax.grad(total))(few)
  np.testing.assert_allclose(
      along, sum(jnp.vdot(gradients[key], direction[key]) for key in few), rtol=1e-4
  )
  of_opacities = lambda opacities: total({**few, "opacities": opacities})
  forward = jax.jit(jax.jacfwd(of_opacities))(few["opacities"])
  np.testing.assert_allclose(forward, gradients["opacities"], rtol=1e-4)
  hessian = jax.jit(jax.hessian(of_opacities))(few["opacities"])
  np.testing.assert_allclose(hessian, hessian.T, rtol=1e-3, atol=1e-3)


def test_hessian_vector_products_of_xla(few):
  direction = jax.tree.map(lambda a: jnp.asarray(np.random.default_rng(1).normal(size=a.shape), jnp.float32), few)
  product = lambda implementation: jax.jit(
      lambda arrays: jax.jvp(jax.grad(lambda a: small_loss(a, implementation)), (arrays,), (direction,))[1]
  )(few)
  for value, other in zip(jax.tree.leaves(product("xla")), jax.tree.leaves(product("reference"))):
    assert np.linalg.norm(value - other) < 1e-3 * np.linalg.norm(other)


@pytest.mark.parametrize("implementation", ["pallas_triton", "pallas_mosaic_tpu"])
def test_what_a_kernel_cannot_ends_in_one_line(few, implementation):
  with pytest.raises(NotImplementedError, match=f"{implementation} has first derivatives only"):
    jax.jvp(jax.grad(lambda a: small_loss(a, implementation)), (few,), (few,))
  with pytest.raises(NotImplementedError, match=f"{implementation} has first derivatives only"):
    jax.grad(lambda a: jnp.sum(jax.grad(small_loss)(a, implementation)["means"]))(few)
  with pytest.raises(TypeError, match=r"forward-mode autodiff \(jvp\)"):
    jax.jvp(lambda a: small_loss(a, implementation), (few,), (few,))
