"""What an image-based talking head is here: a way to draw a person from speech, head pose and eyes, and how it learns that."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec as P
from jaxtyping import Array, Float
from ml_collections import ConfigDict

import splat_kernels
from rsatalker_jax.head import HeadModel

if TYPE_CHECKING:
  from rsatalker_jax.baselines.image.film import DrivenFilm

Params = dict[str, Any]
# What drawing may know of frames (B leading): "speech" (15, D), features about each (`audio.speech_around`); "eyes" () and
# "controls" (7), see `Controls`; "head" and "body" (4, 4), to the world (`joint_transforms`); "world_to_camera" (4, 4) and
# "intrinsics" (3, 3).
Drive = Mapping[str, Any]
# Frames to learn from (B leading): "drive"; "image" (H, W, 3) and "mask" (H, W), the whole person's, as bytes; "frame" (),
# its number among the training frames; "boxes", see `Boxes`; "flame", FLAME's parameters, by which labels are drawn.
Batch = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Subject:
  """Whom a method learns, and how that person is filmed and heard.

  Attributes:
    head: the head model.
    shape, static_offset: the person.
    width, height: of the pictures, pixels.
    background: colour behind the person.
    speech_width: of a frame's speech feature.
    num_frames: that are learnt from; 0 where nothing is.
    raster, implementation: of the rasterizer.
  """

  head: HeadModel
  shape: Float[np.ndarray, "S"]
  static_offset: Float[np.ndarray, "V 3"] | None
  width: int
  height: int
  background: tuple[float, float, float]
  speech_width: int
  num_frames: int
  raster: splat_kernels.Config
  implementation: str | None

  def camera(self, drive: Drive) -> splat_kernels.Camera:
    """The drive's cameras."""
    return splat_kernels.Camera(drive["world_to_camera"], drive["intrinsics"], self.width, self.height)


@dataclasses.dataclass(frozen=True)
class Between:
  """Something that a method does between steps, as density control does.

  Attributes:
    due: whether it is done after so many steps.
    call: (params, buffers, steps taken, the film that is learnt from) -> (params, buffers) of the same shapes. It is called outside jit.
  """

  due: Callable[[int], bool]
  call: Callable[[Params, Params, int, "DrivenFilm"], tuple[Params, Params]]


class ImageMethod:
  """An image-based talking head; subclasses say how it draws and learns.

  Args:
    config: the whole config. Steps and batch are its section `avatar`'s, all else `baselines.<name>`'s.
    subject: whom it learns.

  Attributes:
    name: in the config, and of its group of params and buffers.
    draws_gaussians: whether it draws by the rasterizer, whose list of pairs may be too short.
    controls_density: whether its Gaussians, the group "avatar", come and go by the config's section `density`.
  """

  name: ClassVar[str]
  draws_gaussians: ClassVar[bool] = False
  controls_density: ClassVar[bool] = False

  def __init__(self, config: ConfigDict, subject: Subject):
    self.config, self.subject = config, subject
    self.sizes = config.baselines[self.name]

  @property
  def lpips_weight(self) -> float:
    """Of LPIPS in its loss; 0: there is none."""
    return 0.0

  def init(self, key: jax.Array) -> tuple[Params, Params]:
    """Fresh params and buffers, by group; traced."""
    raise NotImplementedError

  def loss(
      self, params: Params, buffers: Params, batch: Batch, key: jax.Array, step: Array, probes: Params
  ) -> tuple[dict[str, Array], dict[str, Array]]:
    """What is learnt from some frames, those of one device.

    Args:
      key: another for each device.
      step: number of the step.
      probes: where density is controlled, arguments of the renderer (`training.density_control.DensityControl.probes`).

    Returns:
      Terms of the loss, means over these frames, each already weighted; and arrays that are each frame's (B leading):
      where Gaussians are drawn its "overflow", "intersections" and "radii"; where rays are cut off their share, "cut_rays".
    """
    raise NotImplementedError

  def transforms(self, steps: int) -> dict[str, optax.GradientTransformation]:
    """Optimizers by the path of what they move, "<group>/<module>/…", of a stage of so many steps."""
    raise NotImplementedError

  def mean_rate(self, steps: int) -> optax.Schedule:
    """Learning rate of the means, where density is controlled, in a stage of so many steps."""
    raise NotImplementedError

  def between(self, steps: int) -> tuple[Between, ...]:
    """What happens between the steps of a stage of so many."""
    del steps
    return ()

  def draw(self, params: Params, buffers: Params, drive: Drive) -> dict[str, Array]:
    """"image" (B, H, W, 3) of some frames; "overflow" and "intersections" (B) where Gaussians are drawn; where rays are cut off
    the share of those that meet the head, "cut_rays" (B). Traced."""
    raise NotImplementedError

  def with_room(self, needed: int) -> "ImageMethod":
    """The same method, with a rasterizer that has room for `needed` Gaussian-tile pairs a frame."""
    raster = dataclasses.replace(self.subject.raster, max_intersections=splat_kernels.round_capacity(needed))
    return type(self)(self.config, dataclasses.replace(self.subject, raster=raster))

  def render(
      self,
      params: Params,
      buffers: Params,
      drive: Drive,
      mesh: Mesh,
      *,
      chunk: int = 8,
      say: Callable[[str], None] | None = None,
  ) -> Iterator[Float[np.ndarray, "t H W 3"]]:
    """Frames of any number, in order, a chunk at a time over all devices of a mesh.

    A chunk for which the rasterizer's list was too small is drawn again with a larger one. Rays that are cut off stay so: behind
    the last frame `say` is told of how many.
    """
    method, chunk = self, -(-chunk // mesh.size) * mesh.size
    count, draw = len(drive["speech"]), _draw_on(self, mesh)
    cut: list[float] = []
    for start in range(0, count, chunk):
      # The last chunk is filled up with the last frame: one shape, one compilation.
      numbers = np.minimum(np.arange(start, start + chunk), count - 1)
      shown = jax.tree.map(lambda x: np.asarray(x)[numbers], dict(drive))
      output = draw(params, buffers, shown)
      while "overflow" in output and int(output["overflow"].max()):
        method = method.with_room(int(output["intersections"].max()))
        draw = _draw_on(method, mesh)
        output = draw(params, buffers, shown)
      cut += np.asarray(output.get("cut_rays", ()))[: count - start].tolist()
      yield np.asarray(output["image"][: count - start])
    if say is not None and any(cut):
      say(f"{np.mean(cut):.2%} of the rays that meet the head are cut off by their number of samples (at most {max(cut):.2%}, of {count} frames)")


def _draw_on(method: ImageMethod, mesh: Mesh):
  frames = P(mesh.axis_names)
  # No check of varying manual axes: a pallas_call inside does not support it.
  return jax.jit(jax.shard_map(method.draw, mesh=mesh, in_specs=(P(), P(), frames), out_specs=frames, check_vma=False))


def to_float(image: Array) -> Array:
  """Bytes as numbers from 0 to 1."""
  return image.astype(jnp.float32) / 255
