"""ER-NeRF (Li et al., ICCV 2023) and, by its switches, SyncTalk (Peng et al., CVPR 2024): a radiance field of the head, driven by the
voice, over a picture of the shoulders.

The head stands still in its box and the camera moves; what is below the neck is a picture behind it that the head's pose bends.
Both are learnt in one stage: the head by random rays, then its lips by squares of rays with LPIPS, then the torso behind the
frozen head. What differs from the published code:

                          published                                          here
    voice                 DeepSpeech or HuBERT; SyncTalk AVE (its weights    the run's speech features
                          are non-commercial)
    pose, eyes, masks     3DMM tracker, OpenFace's AU45 or MediaPipe's       tracked FLAME and its head model
                          blendshapes, face parsing
    planes                hashed, 12 levels to 512                           dense, fewer levels: nothing collides
    box                   +-1, depth +-0.5, four times the tracker's unit    about the tracked head
    first occupancy       all cells                                          near the head's surface
    occupancy             cells that no training camera sees: never          no exception: no ray comes there
    occupied once         any density, faded by 0.95: for long               up to 20: forgotten in 14 updates
    rays                  of one frame, those beyond a running mean of       of a frame for each device, half of them in the
                          samples dropped                                    face's box, all rendered
    head learns           over the true torso                                without the torso, over random colours: alpha, too
    torso learns          the cut-out torso, neck painted upwards            the true frame, behind the head's alpha
    averages of weights   0.95 each 1000 steps                               none

SyncTalk's portrait mode, which pastes the face into the true frame, has no place where nothing of the truth may be drawn; tracked
poses stand for its stabiliser.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.spatial
from jaxtyping import Array, Float, Int

from rsatalker_jax.baselines.image import nerf_rendering as rendering
from rsatalker_jax.baselines.image.audio import SpeechCode
from rsatalker_jax.baselines.image.labels import LABELS, make_labels
from rsatalker_jax.baselines.image.method import Batch, Between, Drive, ImageMethod, Params, Subject, to_float
from rsatalker_jax.baselines.image.nerf_field import Field, FieldConfig, plane_resolutions
from rsatalker_jax.baselines.image.pose import camera_to_head, invert_rigid
from rsatalker_jax.baselines.image.torso import Torso, TorsoConfig, picture_projection
from rsatalker_jax.errors import InputError
from rsatalker_jax.evaluation import image_metrics
from rsatalker_jax.head import HeadModel, head_vertices
from rsatalker_jax.head.flame import JOINT_NAMES

_MARGIN = 0.02  # Metres around the tracked head that are in its box, and that are occupied at first: hair, an open jaw.
_EYE_JITTER = 0.05
_LPIPS, _LIPS_LPIPS = 0.1, 0.01  # Weights of LPIPS, of a crop and of the lips' crop.
_SHIFT = 1e-3  # By which points are moved to see how fast attention and uncertainty change …
_SHIFTS_EVERY = 16  # … in each so many steps.
_BLOCK = 4096  # Rays that are drawn at once.
_HIDDEN = 0.99  # Alpha from which on what lies behind is not seen.


@dataclasses.dataclass(frozen=True)
class Switches:
  """What tells the two methods apart besides sizes.

  Attributes:
    pixels: error of a ray's colour, "mse" or "l1".
    uncertainty_weights: of the uncertainty's two terms, in the face's box and outside.
    audio_box: outside of which box attention on the voice is penalised.
    eye_box: in which box attention on the eyes is.
    eye_by_audio: whether that counts as much as the voice is attended to, by a mean over a ray's samples; or alone, by their sum.
    eyes: which of the drive's controls: "eyes", how far they are closed, or "controls", brows and lids.
    eye_jitter: noise on it in training.
    eye_sigmoid, eye_hidden: see `FieldConfig`.
  """

  pixels: str
  uncertainty_weights: tuple[float, float]
  audio_box: str
  eye_box: str
  eye_by_audio: bool
  eyes: str
  eye_jitter: float
  eye_sigmoid: bool
  eye_hidden: int


ERNERF = Switches("mse", (1.0, 1e-3), "face", "face", True, "eyes", _EYE_JITTER, True, 16)
SYNCTALK = Switches("l1", (0.01, 0.01), "lower", "lower", False, "controls", 0.0, False, 64)


# --- The model


class HeadAndTorso(nn.Module):
  """Field of the head, picture of the torso, code of the voice, and a code for each training frame.

  Attributes:
    field, torso: their sizes.
    frames: to learn from; all others have the first one's codes.
  """

  field_config: FieldConfig
  torso_config: TorsoConfig
  frames: int

  def setup(self):
    self.voice = SpeechCode(self.field_config.audio)
    self.field = Field(self.field_config)
    self.torso = Torso(self.torso_config)
    widths = {"codes": self.field_config.code, "torso_codes": self.torso_config.code}
    draw = nn.initializers.normal(0.1)
    self.codes, self.torso_codes = (self.param(name, draw, (max(self.frames, 1), width)) for name, width in widths.items())

  def __call__(self, speech: Float[Array, "15 D"], points: Float[Array, "n 3"], places: Float[Array, "n 2"]):
    """Everything once, to be initialised."""
    eyes = jnp.zeros(self.field_config.eyes)
    return (
        self.head(points, points, self.hear(speech), eyes, 0),
        self.behind(places, jnp.eye(3, 4), 0),
    )

  def hear(self, speech: Float[Array, "15 D"]) -> Float[Array, "A"]:
    return self.voice(speech)

  def head(self, points, directions, audio, eyes, frame):
    return self.field(points, directions, audio, eyes, self.codes[frame])

  def density(self, points, audio, eyes):
    return self.field.density(points, audio, eyes)

  def behind(self, places, head_to_picture, frame):
    return self.torso(places, head_to_picture, self.torso_codes[frame])

  def points_penalty(self) -> Float[Array, ""]:
    return self.torso.points_penalty()


# --- Losses


@flax.struct.dataclass
class Rays:
  """What was rendered of n rays.

  Attributes:
    color: over their background.
    alpha: of the head.
    uncertainty: of the colour.
    audio_attention, eye_attention: summed over the samples, not weighted.
  """

  color: Float[Array, "n 3"]
  alpha: Float[Array, "n"]
  uncertainty: Float[Array, "n"]
  audio_attention: Float[Array, "n"]
  eye_attention: Float[Array, "n"]


def head_terms(
    switches: Switches,
    rays: Rays,
    target: Float[Array, "n 3"],
    in_face: Float[Array, "n"],
    in_lower: Float[Array, "n"],
    progress: Float[Array, ""] | float,
    fine_tuned: Array | bool,
    samples: int,
) -> dict[str, Float[Array, ""]]:
  """The loss of a head's rays but LPIPS and what shifted points add, each term weighted.

  Args:
    switches: see there.
    rays: as rendered.
    target: true colours over the same background.
    in_face, in_lower: 1 for rays in the face's box, in its lower half's.
    progress: s, from 0 to 1 over the steps before fine-tuning: uncertainty and attention count by and by.
    fine_tuned: whether the lips are: without uncertainty.
    samples: at most on a ray.
  """
  s, count = progress, len(target)
  error = rays.color - target
  pixels = jnp.mean(error**2 if switches.pixels == "mse" else jnp.abs(error), axis=-1)
  # Where colours are uncertain errors count more; the weights have mean 1.
  share = count * jax.nn.softmax(jax.lax.stop_gradient(rays.uncertainty))
  weight = jnp.where(fine_tuned, 1.0, 0.2 + 0.8 * jnp.clip((1 - s) + s * share, 0.0, 10.0))
  length = jax.lax.stop_gradient(jnp.sqrt(jnp.sum(error**2, axis=-1)))
  beta = 1 + rays.uncertainty
  learnt = length / (2 * beta**2) + jnp.log(beta) ** 2 / 2
  inside, outside = switches.uncertainty_weights
  uncertainty = s * (inside * in_face * learnt + outside * (1 - in_face) * rays.uncertainty)

  alpha = jnp.clip(rays.alpha, 1e-5, 1 - 1e-5)
  entropy = -alpha * jnp.log2(alpha) - (1 - alpha) * jnp.log2(1 - alpha)
  boxes = {"face": in_face, "lower": in_lower}
  eyes = boxes[switches.eye_box] * rays.eye_attention
  if switches.eye_by_audio:
    eyes = eyes / samples * jax.lax.stop_gradient(rays.audio_attention)
  return {
      "pixels": jnp.mean(weight * pixels),
      "uncertainty": jnp.where(fine_tuned, 0.0, jnp.mean(uncertainty)),
      "entropy": 1e-4 * jnp.mean(entropy),
      "audio_attention": 1e-4 * s * jnp.mean((1 - boxes[switches.audio_box]) * rays.audio_attention),
      "eye_attention": 1e-4 * s * jnp.mean(eyes),
  }


def shift_term(
    seen: dict[str, Float[Array, "n"]], shifted: dict[str, Float[Array, "n"]], progress: Float[Array, ""] | float
) -> Float[Array, ""]:
  """How much attention and uncertainty change where points are shifted: squares, pulled at the shifted points alone."""
  names = ("uncertainty", "audio_attention", "eye_attention")
  changes = [jnp.mean((shifted[name] - jax.lax.stop_gradient(seen[name])) ** 2) for name in names]
  return 1e-5 * progress * jnp.sum(jnp.stack(changes))


# --- The method


class ErNerf(ImageMethod):
  """ER-NeRF; see the module."""

  name = "ernerf"
  switches = ERNERF

  def __init__(self, config, subject: Subject):
    super().__init__(config, subject)
    c = self.sizes
    if c.crop > min(subject.width, subject.height):
      expected = f"at most the smaller side of the pictures, which are {subject.width}x{subject.height}"
      raise InputError("config", f"baselines.{self.name}.crop", c.crop, expected)
    steps = config.avatar.steps
    self.head_steps, self.lips_steps = max(round(c.head_share * steps), 1), round(c.lips_share * steps)
    self.unit, self.centre, half, surface = _measure_head(subject.head, subject.shape, subject.static_offset)
    self.lattice = rendering.Lattice(half, c.step, c.lattice_points, c.samples)
    self._surface = surface
    resolutions = functools.partial(plane_resolutions, c.levels)
    field = FieldConfig(
        resolutions=resolutions(c.coarsest, c.finest),
        features=c.features,
        hidden=c.hidden,
        attention_hidden=c.attention_hidden,
        eye_hidden=self.switches.eye_hidden,
        eyes=1 if self.switches.eyes == "eyes" else 7,
        eye_sigmoid=self.switches.eye_sigmoid,
    )
    torso = TorsoConfig(resolutions(c.torso_coarsest, c.torso_finest))
    self.model = HeadAndTorso(field, torso, subject.num_frames)
    self.labels = make_labels(
        subject.head, subject.shape, subject.static_offset, raster=subject.raster, implementation=subject.implementation
    )

  @property
  def lpips_weight(self) -> float:
    return _LPIPS if self.lips_steps else 0.0

  def init(self, key: jax.Array) -> tuple[Params, Params]:
    speech = jnp.zeros((15, self.subject.speech_width))
    params = self.model.init(key, speech, jnp.zeros((1, 3)), jnp.zeros((1, 2)))
    return {self.name: params["params"]}, {self.name: {"occupancy": self._first_occupancy()}}

  def _first_occupancy(self) -> Float[Array, "R R R"]:
    size = self.sizes.occupancy
    centres = rendering.cell_centres(size, self.lattice.half)
    distance, _ = scipy.spatial.KDTree(self._surface).query(centres)
    # Within the margin, or a cell's diagonal where that is more.
    reach = max(_MARGIN / self.unit, 2 * float(np.linalg.norm(self.lattice.half)) / size)
    return jnp.asarray((distance < reach).reshape((size,) * 3), jnp.float32)

  # --- Drawing

  def _apply(self, params: Params, *args, method: str) -> Any:
    # As many codes as it was trained with: who draws alone does not know how many frames that were.
    model = self.model.clone(frames=len(params[self.name]["codes"]))
    return model.apply({"params": params[self.name]}, *args, method=method)

  def _eyes(self, drive: Drive) -> Float[Array, "E"]:
    return jnp.reshape(drive[self.switches.eyes], -1)

  def _camera(self, drive: Drive) -> Float[Array, "4 4"]:
    """One frame's camera as the head in its box sees it."""
    pose = camera_to_head(drive["world_to_camera"], drive["head"])
    return pose.at[:3, 3].set((pose[:3, 3] - self.centre) / self.unit)

  def _render(self, params, occupied, drive, pixels, *, audio, eyes, frame, shift=0.0):
    """The head's premultiplied colours, `Rays` without background; the samples: points, directions, what the field says; which rays
    `samples` cut off: those with more occupied points behind, which can be seen."""
    origins, directions = rendering.make_rays(self._camera(drive), drive["intrinsics"], pixels)
    further = dataclasses.replace(self.lattice, samples=self.lattice.samples + 1)
    points, kept = rendering.sample_rays(origins, directions, occupied, further, shift)
    points, kept, more = points[:, :-1], kept[:, :-1], kept[:, -1]
    count, samples = kept.shape
    flat = points.reshape(-1, 3), jnp.repeat(directions, samples, axis=0)
    said = self._apply(params, *flat, audio, eyes, frame, method="head")
    on_rays = {name: jnp.where(kept.reshape(kept.shape + (1,) * (x.ndim - 1)), x.reshape(count, samples, *x.shape[1:]), 0.0)
               for name, x in said.items()}
    weights = rendering.composite(on_rays["density"], self.lattice.step)
    rays = Rays(
        color=jnp.einsum("ns,nsc->nc", weights, on_rays["color"]),
        alpha=jnp.sum(weights, axis=-1),
        uncertainty=jnp.sum(weights * on_rays["uncertainty"], axis=-1),
        audio_attention=jnp.sum(on_rays["audio_attention"], axis=-1),
        eye_attention=jnp.sum(on_rays["eye_attention"], axis=-1),
    )
    return rays, (flat, said), more & (rays.alpha < _HIDDEN)

  def _behind(self, params, drive, pixels, frame) -> Float[Array, "n 3"]:
    """The torso over the background."""
    width, height = self.subject.width, self.subject.height
    projection = picture_projection(invert_rigid(self._camera(drive)), drive["intrinsics"], width, height)
    places = 2 * pixels / jnp.array([width, height]) - 1
    alpha, color = self._apply(params, places, projection, frame, method="behind")
    return alpha[:, None] * color + (1 - alpha[:, None]) * jnp.asarray(self.subject.background)

  def draw(self, params: Params, buffers: Params, drive: Drive) -> dict[str, Array]:
    occupied = rendering.find_occupied(buffers[self.name]["occupancy"])
    image, cut = jax.lax.map(lambda one: self._draw_frame(params, occupied, one), dict(drive))
    return {"image": image, "cut_rays": cut}

  def _draw_frame(self, params, occupied, drive) -> tuple[Float[Array, "H W 3"], Float[Array, ""]]:
    """Only rays that meet an occupied cell are rendered: as many blocks of them as it takes. And the share of these that is cut off."""
    width, height = self.subject.width, self.subject.height
    number = jnp.arange(width * height)
    pixels = jnp.stack([number % width, number // width], axis=-1) + 0.5
    behind = self._behind(params, drive, pixels, 0)
    audio, eyes = self._apply(params, drive["speech"], method="hear"), self._eyes(drive)
    origins, directions = rendering.make_rays(self._camera(drive), drive["intrinsics"], pixels)
    first = dataclasses.replace(self.lattice, samples=1)
    meets = rendering.sample_rays(origins, directions, occupied, first)[1][:, 0]
    order = jnp.pad(jnp.argsort(~meets), (0, _BLOCK), constant_values=width * height)

    def draw_block(i, drawn):
      image, cut = drawn
      chosen = jax.lax.dynamic_slice(order, (i * _BLOCK,), (_BLOCK,))
      rays, _, cut_off = self._render(
          params, occupied, drive, pixels[jnp.minimum(chosen, width * height - 1)], audio=audio, eyes=eyes, frame=0
      )
      # What fills up the last block lies beyond the picture, and is dropped.
      over = rays.color + (1 - rays.alpha[:, None]) * behind.at[chosen].get(mode="clip")
      cut = cut + jnp.sum(cut_off & (chosen < width * height))
      return image.at[chosen].set(over, mode="drop"), cut

    met = jnp.sum(meets)
    image, cut = jax.lax.fori_loop(0, -(-met // _BLOCK), draw_block, (behind, jnp.int32(0)))
    return jnp.clip(image, 0.0, 1.0).reshape(height, width, 3), cut / jnp.maximum(met, 1)

  # --- Learning

  def loss(
      self, params: Params, buffers: Params, batch: Batch, key: jax.Array, step: Array, probes: Params
  ) -> tuple[dict[str, Array], dict[str, Array]]:
    del probes
    occupied = rendering.find_occupied(buffers[self.name]["occupancy"])
    labels = self.labels(batch["flame"], self.subject.camera(batch["drive"]))
    shoulders = labels[..., LABELS.index("body")]
    keys = jax.random.split(key, len(batch["frame"]))
    examples = dict(batch) | {"shoulders": shoulders}
    learn_head = functools.partial(self._learn_head, params, occupied, step)
    learn_torso = functools.partial(self._learn_torso, params, occupied)
    terms, cut = jax.lax.cond(
        step < self.head_steps + self.lips_steps, jax.vmap(learn_head), jax.vmap(learn_torso), examples, keys
    )
    return jax.tree.map(jnp.mean, terms), {"cut_rays": cut}

  def _learn_head(self, params, occupied, step, example, key) -> tuple[dict[str, Array], Array]:
    """Terms of one frame's loss, and the share of its rays that are cut off."""
    size = self.sizes.crop
    keys = jax.random.split(key, 5)
    fine_tuned = step >= self.head_steps
    in_lips = step % 2 == 0
    drive, frame = example["drive"], example["frame"]
    # A head without such a part has a box without area: then the whole picture is meant.
    boxes = {name: jnp.where(box[2] > box[0], box, self._whole) for name, box in example["boxes"].items()}
    # --- Which pixels: random ones, half of them in the face; or all of a square about the lips, or anywhere in the face.
    random = jnp.concatenate([
        self._draw_pixels(keys[0], self._whole, size**2 - size**2 // 2), self._draw_pixels(keys[1], boxes["face"], size**2 // 2)
    ])
    anywhere = self._draw_pixels(keys[2], boxes["face"], 1)[0]
    lips = jnp.floor((boxes["lips"][:2] + boxes["lips"][2:]) / 2).astype(jnp.int32)
    square = self._square(jnp.where(in_lips, lips, anywhere))
    pixels = jnp.where(fine_tuned, square, random)
    x, y = pixels[:, 0], pixels[:, 1]

    # --- The truth without shoulders and background: colours times the head's alpha.
    background = jnp.asarray(self.subject.background)
    mask = to_float(example["mask"])[y, x][:, None]
    head = 1 - example["shoulders"][y, x][:, None]
    color = (to_float(example["image"])[y, x] - (1 - mask) * background) * head
    alpha = mask * head
    # --- Rays over random colours, so that white is no way to be transparent; squares over one, as LPIPS is to see a picture.
    behind = jnp.where(fine_tuned, background, jax.random.uniform(keys[3], color.shape))
    audio = self._apply(params, drive["speech"], method="hear")
    jitter_key, shift_key, shifted_key = jax.random.split(keys[4], 3)
    eyes = self._eyes(drive)
    eyes = eyes + jax.random.uniform(jitter_key, eyes.shape, minval=-1.0) * self.switches.eye_jitter
    shift = jax.random.uniform(shift_key, x.shape)
    rays, (samples, seen), cut = self._render(
        params, occupied, drive, pixels + 0.5, audio=audio, eyes=eyes, frame=frame, shift=shift
    )
    rays = dataclasses.replace(rays, color=rays.color + (1 - rays.alpha[:, None]) * behind)
    target = color + (1 - alpha) * behind
    inside = lambda name: _in_box(boxes[name], pixels + 0.5)
    progress = jnp.minimum(step / self.head_steps, 1.0)
    terms = head_terms(
        self.switches, rays, target, inside("face"), inside("lower"), progress, fine_tuned, self.lattice.samples
    )

    def shifted():
      points, directions = samples
      moved = points + _SHIFT * jax.random.uniform(shifted_key, points.shape, minval=-1.0)
      said = self._apply(params, moved, directions, jax.lax.stop_gradient(audio), eyes, frame, method="head")
      return shift_term(seen, said, progress)

    def perceived():
      picture = lambda x: x.reshape(size, size, 3)
      return jnp.where(in_lips, _LIPS_LPIPS, _LPIPS) * image_metrics.lpips(picture(rays.color), picture(target))

    shifts = ~fine_tuned & (step % _SHIFTS_EVERY == 0)
    zero = lambda: jnp.zeros(())
    return terms | {
        "shift": jax.lax.cond(shifts, shifted, zero),
        # LPIPS's weights need not be installed where nothing is fine-tuned.
        "lpips": jax.lax.cond(fine_tuned, perceived, zero) if self.lips_steps else zero(),
        "torso": jnp.zeros(()),
        "torso_points": jnp.zeros(()),
    }, jnp.mean(cut)

  def _learn_torso(self, params, occupied, example, key) -> tuple[dict[str, Array], Array]:
    drive, frame = example["drive"], example["frame"]
    pixels = self._draw_pixels(key, self._whole, self.sizes.crop**2)
    frozen = jax.lax.stop_gradient(params)
    audio = self._apply(frozen, drive["speech"], method="hear")
    rays, _, cut = self._render(frozen, occupied, drive, pixels + 0.5, audio=audio, eyes=self._eyes(drive), frame=frame)
    image = rays.color + (1 - rays.alpha[:, None]) * self._behind(params, drive, pixels + 0.5, frame)
    truth = to_float(example["image"])[pixels[:, 1], pixels[:, 0]]
    names = ("pixels", "uncertainty", "entropy", "audio_attention", "eye_attention", "shift", "lpips")
    error = (image - truth) ** 2 if self.switches.pixels == "mse" else jnp.abs(image - truth)
    return {name: jnp.zeros(()) for name in names} | {
        "torso": jnp.mean(error),
        "torso_points": self._apply(params, method="points_penalty"),
    }, jnp.mean(cut)

  @property
  def _whole(self) -> Float[Array, "4"]:
    return jnp.array([0.0, 0.0, self.subject.width, self.subject.height])

  def _draw_pixels(self, key, box, count) -> Int[Array, "count 2"]:
    """Columns and rows of random pixels of a box."""
    size = jnp.array([self.subject.width, self.subject.height])
    place = box[:2] + jax.random.uniform(key, (count, 2)) * (box[2:] - box[:2])
    return jnp.clip(jnp.floor(place).astype(jnp.int32), 0, size - 1)

  def _square(self, centre: Int[Array, "2"]) -> Int[Array, "n 2"]:
    """Columns and rows of the pixels of a square about a place, moved into the picture, row by row."""
    size = self.sizes.crop
    limit = jnp.array([self.subject.width, self.subject.height]) - size
    corner = jnp.clip(centre - size // 2, 0, limit)
    row, column = jnp.divmod(jnp.arange(size**2), size)
    return corner + jnp.stack([column, row], axis=-1)

  def transforms(self, steps: int) -> dict[str, optax.GradientTransformation]:
    c = self.sizes
    moves = functools.partial(optax.adamw, b1=0.0, b2=0.99, eps=1e-15)
    ends = self.head_steps, self.head_steps + self.lips_steps

    def head(rate):
      def schedule(step):
        before = rate * c.final_share ** (step / ends[0])
        tuned = rate * c.lips_final_share ** (step / ends[1])
        return jnp.where(step < ends[0], before, jnp.where(step < ends[1], tuned, 0.0))
      return schedule

    def torso(rate):
      def schedule(step):
        return jnp.where(step < ends[1], 0.0, rate * c.final_share ** ((step - ends[1]) / max(steps - ends[1], 1)))
      return schedule

    nets, planes = c.learning_rate, c.plane_learning_rate
    return {
        self.name: moves(head(nets), weight_decay=0.0),
        f"{self.name}/voice/attention": moves(head(5 * nets), weight_decay=1e-4),
        f"{self.name}/field/planes": moves(head(planes), weight_decay=0.01),
        f"{self.name}/torso": moves(torso(nets), weight_decay=0.0),
        f"{self.name}/torso_codes": moves(torso(nets), weight_decay=0.0),
        f"{self.name}/torso/planes": moves(torso(planes), weight_decay=0.01),
    }

  def between(self, steps: int) -> tuple[Between, ...]:
    del steps
    every, last = self.sizes.occupancy_every, self.head_steps + self.lips_steps

    @jax.jit
    def update(params, grid, speech, eyes, key):
      audio = self._apply(params, speech, method="hear")
      density = lambda points: self._apply(params, points, audio, eyes, method="density")
      return rendering.update_occupancy(grid, density, self.lattice.half, key)

    def call(params, buffers, step, film):
      frame = np.random.default_rng([self.config.seed, step]).integers(len(film), size=1)
      drive = jax.tree.map(lambda x: x[0], dict(film.drive(frame)))
      key = jax.random.fold_in(jax.random.key(self.config.seed), step)
      grid = update(params, buffers[self.name]["occupancy"], drive["speech"], self._eyes(drive), key)
      return params, buffers | {self.name: buffers[self.name] | {"occupancy": grid}}

    return (Between(lambda step: step % every == 0 and step <= last, call),)


class SyncTalk(ErNerf):
  """SyncTalk, as the switches of ER-NeRF that it is; see the module."""

  name = "synctalk"
  switches = SYNCTALK


def _in_box(box: Float[Array, "4"], places: Float[Array, "n 2"]) -> Float[Array, "n"]:
  return jnp.all((places >= box[:2]) & (places < box[2:]), axis=-1).astype(jnp.float32)


def _measure_head(
    head: HeadModel, shape: Float[np.ndarray, "S"], static_offset: Float[np.ndarray, "V 3"] | None
) -> tuple[float, Float[np.ndarray, "3"], tuple[float, float, float], Float[np.ndarray, "n 3"]]:
  """The box about a person's head at rest: metres of its unit, its centre, its half sides in that unit, of which the largest is 1,
  and the head's vertices in it.

  The head is what its neck joint and those above it move.
  """
  zero = jnp.zeros(3)
  pose = dict(expression=zero[:0], rotation=zero, neck=zero, jaw=zero, eyes=jnp.zeros(6), translation=zero)
  vertices = np.asarray(jax.jit(head_vertices)(head, shape=jnp.asarray(shape), static_offset=static_offset, **pose))
  moved = np.asarray(head.weights)[:, JOINT_NAMES.index("neck") :].sum(axis=1) > 0.5
  vertices = vertices[moved]
  low, high = vertices.min(axis=0), vertices.max(axis=0)
  half = (high - low) / 2 + _MARGIN
  unit, centre = float(half.max()), (low + high) / 2
  return unit, centre, tuple((half / unit).tolist()), (vertices - centre) / unit
