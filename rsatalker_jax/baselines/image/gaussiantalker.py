'''GaussianTalker (Cho et al. 2024): 3D Gaussians that a head's speech, eyes and pose move by attention; re-implemented.

Written from the facts that paper and released code state, without their code. What is other here, and what they have:

    | here | published |
    |---|---|
    | a Gaussian per triangle of the tracked person's mean head, shoulders and neck among them | per vertex of the Basel model's |
    | speech as the run's features at 25 fps | DeepSpeech logits at 50 Hz |
    | head pose from the tracked head | from a tracker of 68 landmarks |
    | shoulders learnt: Gaussians of their own that follow the body (`torso="body"`) | true pixels of the shoulders behind the head |
    | … or Gaussians of the head's, held still by what is added to them (`torso="head"`) | the authors' torso branch |
    | mask term: L1(mask, alpha), of the whole person | L1(head's mask, tanh(depth / 2)) |
    | perceptual term: LPIPS by AlexNet | L1 of VGG16's features |
    | colours without view dependence | spherical harmonics of degree 3 |
    | the code of the eyes has frequencies up to 100 | up to 10,000, the upper quarter of which aliases |
    | no dropout in attention | 0.2 |
    | changes of places in units of 2 cm | in the tracker's, of which a face is 1.5 high |
    | pruning sees the planes' opacities | the optimizer's stale ones |
    | density control by the config's `density`, as our avatar's | clone and split above 1e-3, no reset |
    | Gaussians above `max_size` are penalised, and drawn no larger | pruned in the first phase, left alone in the second |
    | rates rise at the beginning of the second phase | they jump |
    | hundreds of steps of 2 frames | 7,999 of 1, then 10,000 of 32 |
'''

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

import splat_kernels
from rsatalker_jax.avatar import FREE, Gaussians, triangle_frames
from rsatalker_jax.avatar.binding import multiply_quaternions, quaternion_from_matrix
from rsatalker_jax.baselines.image.audio import SPEECH_FRAMES, SpeechCode
from rsatalker_jax.baselines.image.boxes import box_mask
from rsatalker_jax.baselines.image.method import Batch, Between, Drive, ImageMethod, Params, Subject, to_float
from rsatalker_jax.baselines.image.planes import PLANES, sample_plane
from rsatalker_jax.baselines.image.pose import camera_to_head
from rsatalker_jax.evaluation import image_metrics
from rsatalker_jax.head import head_vertices, pose_for

# What a Gaussian's binding says here: what it is fixed to.
HEAD, BODY = 0, 1
_EYE_FREQUENCIES = 32
_EYE_HIGHEST = 100.0
# Metres: what the network adds to a place is measured in this. Lips and lids move by no more.
_DELTA_UNIT = 0.02


class CanonicalPlanes(nn.Module):
  """Features of places about the head at rest: at each resolution the product of three planes' samples.

  Attributes:
    resolutions: texels along each side.
    channels: of each resolution.
    low, high: of the box that the planes span, metres.
  """

  resolutions: tuple[int, ...]
  channels: int
  low: tuple[float, float, float]
  high: tuple[float, float, float]

  @nn.compact
  def __call__(self, points: Float[Array, "N 3"]) -> Float[Array, "N features"]:
    low, high = jnp.array(self.low), jnp.array(self.high)
    points = 2 * (points - low) / (high - low) - 1
    features = []
    for size in self.resolutions:
      product = jnp.ones(())
      for axes in PLANES:
        name = f"{'xyz'[axes[0]]}{'xyz'[axes[1]]}_{size}"
        init = lambda key, shape: jax.random.uniform(key, shape, minval=0.1, maxval=0.5)
        product = product * sample_plane(self.param(name, init, (size, size, self.channels)), points[:, axes])
      features.append(product)
    return jnp.concatenate(features, axis=-1)


class Decoder(nn.Module):
  """One attribute of each Gaussian from its features, or a change of it.

  Attributes:
    hidden: width.
    outputs: numbers of the attribute.
    small: whether it begins near zero (Xavier's initialisation with gain 0.1).
  """

  hidden: int
  outputs: int
  small: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, "*b D"]) -> Float[Array, "*b outputs"]:
    x = nn.relu(_dense(self.hidden)(nn.relu(x)))
    init = nn.initializers.variance_scaling(0.01 if self.small else 1.0, "fan_avg", "uniform")
    return nn.Dense(self.outputs, kernel_init=init)(x)


def _dense(features: int, **options) -> nn.Dense:
  return nn.Dense(features, kernel_init=nn.initializers.xavier_uniform(), **options)


class SpatialAudioAttention(nn.Module):
  """Gaussians ask four tokens what they are to do: speech, eyes, camera and nothing. They do not see each other.

  Attributes:
    heads: of the attention.
    layers: one after another.
  """

  heads: int
  layers: int

  @nn.compact
  def __call__(self, x: Float[Array, "N D"], tokens: Float[Array, "B 4 D"]) -> Float[Array, "B N D"]:
    width = x.shape[-1]
    for layer in range(self.layers):
      split = lambda y: y.reshape(*y.shape[:-1], self.heads, width // self.heads)
      query = split(_dense(width, name=f"query_{layer}")(x))
      key, value = (split(_dense(width, name=f"{name}_{layer}")(tokens)) for name in ("key", "value"))
      logits = jnp.einsum("...nhd,...khd->...nhk", query, key) / np.sqrt(width // self.heads)
      heard = jnp.einsum("...nhk,...khd->...nhd", jax.nn.softmax(logits, axis=-1), value)
      heard = heard.reshape(*heard.shape[:-2], width)
      x = nn.LayerNorm(epsilon=1e-12, name=f"norm_{layer}")(x + _dense(width, name=f"out_{layer}")(heard))
      y = _dense(width, name=f"narrow_{layer}")(nn.relu(_dense(2 * width, name=f"wide_{layer}")(x)))
      x = nn.LayerNorm(epsilon=1e-12, name=f"last_norm_{layer}")(x + y)
    return x


def eye_code(eyes: Float[Array, "*b"]) -> Float[Array, "*b 32"]:
  """Sines and cosines of how far the eyes are closed, of frequencies from 1 to 100."""
  power = np.arange(_EYE_FREQUENCIES // 2) * 2 / _EYE_FREQUENCIES
  angle = eyes[..., None] * _EYE_HIGHEST**power
  return jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(*eyes.shape, _EYE_FREQUENCIES)


class Network(nn.Module):
  """Everything that is trained but the Gaussians themselves.

  Attributes:
    planes: see `CanonicalPlanes`.
    hidden: width of heads and decoders.
    heads, layers: see `SpatialAudioAttention`.
    colors: of a Gaussian: numbers of its spherical harmonics.
  """

  planes: CanonicalPlanes
  hidden: int
  heads: int
  layers: int
  colors: int

  def setup(self):
    width = self.planes.channels * len(self.planes.resolutions)
    self.trunk = [_dense(self.hidden), _dense(self.hidden)]
    self.first = {"opacity_logits": Decoder(self.hidden, 1), "sh": Decoder(self.hidden, self.colors)}
    self.speech = SpeechCode()
    token = lambda: [_dense(width, use_bias=False), _dense(width, use_bias=False)]
    self.token_networks = {name: token() for name in ("speech", "eyes", "camera")}
    self.null = self.param("null", nn.initializers.normal(1.0), (width,))
    self.attention = SpatialAudioAttention(self.heads, self.layers)
    sizes = {"means": 3, "log_scales": 3, "quats": 4, "opacity_logits": 1, "sh": self.colors}
    self.deltas = {name: Decoder(self.hidden, size, small=True) for name, size in sizes.items()}

  def colour(self, means: Float[Array, "N 3"]) -> dict[str, Array]:
    """Opacities' logits and colours that the planes give Gaussians at these places."""
    x = self.planes(means)
    first, second = self.trunk
    x = second(nn.relu(first(x)))
    opacity, sh = (self.first[name](x) for name in ("opacity_logits", "sh"))
    return {"opacity_logits": opacity[..., 0], "sh": sh.reshape(*sh.shape[:-1], -1, 3)}

  def move(self, means: Float[Array, "N 3"], drive: Drive) -> dict[str, Array]:
    """What is added to the attributes of Gaussians, frame by frame."""
    camera = camera_to_head(drive["world_to_camera"], drive["head"])[..., :3, :]
    seen = {
        "speech": self.speech(drive["speech"]),
        "eyes": eye_code(drive["eyes"]),
        "camera": camera.reshape(*camera.shape[:-2], 12),
    }
    tokens = [self._token(name, x) for name, x in seen.items()]
    tokens.append(jnp.broadcast_to(self.null, tokens[0].shape))
    x = self.attention(self.planes(means), jnp.stack(tokens, axis=-2))
    deltas = {name: decode(x) for name, decode in self.deltas.items()}
    deltas["means"] = _DELTA_UNIT * deltas["means"]
    deltas["opacity_logits"] = deltas["opacity_logits"][..., 0]
    deltas["sh"] = deltas["sh"].reshape(*deltas["sh"].shape[:-1], -1, 3)
    return deltas

  def _token(self, name: str, x: Array) -> Array:
    first, second = self.token_networks[name]
    return second(nn.relu(first(x)))

  def __call__(self, means: Float[Array, "N 3"], drive: Drive) -> dict[str, Array]:
    return self.colour(means) | {f"delta_{name}": x for name, x in self.move(means, drive).items()}


class GaussianTalker(ImageMethod):
  """See the module. It learns in two phases: in the first nothing moves and colours come from the planes, in the second
  Gaussians keep their own, and are moved.

  Params: "avatar", Gaussians at rest, in metres; "gaussiantalker", the network. Buffers: "avatar", what each Gaussian is fixed
  to; "gaussiantalker", whether the second phase has begun.
  """

  name = "gaussiantalker"
  draws_gaussians = True
  controls_density = True

  def __init__(self, config: ConfigDict, subject: Subject):
    super().__init__(config, subject)
    sizes = self.sizes
    rest = jax.tree.map(lambda x: x[0], pose_for(jnp.zeros((1, 56))))
    offset = subject.static_offset
    self._vertices = np.asarray(jax.jit(head_vertices)(subject.head, shape=subject.shape, static_offset=offset, **rest))
    low, high = (tuple(map(float, corner)) for corner in (self._vertices.min(axis=0), self._vertices.max(axis=0)))
    self.degree = config.gaussians.sh_degree
    self.network = Network(
        planes=CanonicalPlanes(tuple(sizes.planes), sizes.channels, low, high),
        hidden=sizes.hidden,
        heads=sizes.heads,
        layers=sizes.layers,
        colors=3 * (self.degree + 1) ** 2,
    )

  @property
  def lpips_weight(self) -> float:
    return self.sizes.loss.lpips

  def init(self, key: jax.Array) -> tuple[Params, Params]:
    gaussians, binding = self._first_gaussians()
    drive = {
        "speech": jnp.zeros((1, SPEECH_FRAMES, self.subject.speech_width)),
        "eyes": jnp.zeros(1),
        **dict.fromkeys(("head", "world_to_camera"), jnp.eye(4)[None]),
    }
    network: Any = self.network.init(key, gaussians.means[:1], drive)
    params = {"avatar": dict(vars(gaussians)), self.name: network["params"]}
    return params, {"avatar": {"binding": binding}, self.name: {"moves": jnp.zeros((), bool)}}

  def _first_gaussians(self) -> tuple[Gaussians, Int[Array, "N"]]:
    """One in the middle of each triangle, as large as it, and free slots for density control."""
    head = self.subject.head
    _, size, centre = triangle_frames(jnp.asarray(self._vertices), head.faces)
    count = len(centre)
    slots = max(count, self.config.gaussians.capacity or 0)
    pad = lambda x, value: jnp.pad(x, [(0, slots - count)] + [(0, 0)] * (x.ndim - 1), constant_values=value)
    on_body = np.asarray(head.weights)[np.asarray(head.faces), 0].mean(axis=1) > 0.5
    fixed_to = np.where(on_body & (self.sizes.torso == "body"), BODY, HEAD)
    scale = jnp.log(self.config.gaussians.init_scale * size)[:, None].repeat(3, axis=1)
    gaussians = Gaussians(
        means=pad(centre, 0.0),
        quats=jnp.tile(jnp.array([1.0, 0.0, 0.0, 0.0]), (slots, 1)),
        log_scales=pad(scale, 0.0),
        opacity_logits=jnp.zeros(slots),
        sh=jnp.zeros((slots, (self.degree + 1) ** 2, 3)),
    )
    return gaussians, pad(jnp.asarray(fixed_to, jnp.int32), FREE)

  # --- Drawing

  def draw(self, params: Params, buffers: Params, drive: Drive) -> dict[str, Array]:
    output = self._rasterize(self._find_gaussians(params, buffers, drive), buffers, drive, {})
    return {"image": output.image, "overflow": output.overflow, "intersections": output.intersections}

  def _find_gaussians(self, params: Params, buffers: Params, drive: Drive) -> dict[str, Array]:
    """The Gaussians of every frame, as the phase has them."""
    moves = buffers[self.name]["moves"]
    return jax.lax.cond(moves, self._move, self._colour, params["avatar"], params[self.name], drive)

  def _rasterize(
      self, gaussians: dict[str, Array], buffers: Params, drive: Drive, probes: Params
  ) -> splat_kernels.RenderOutput:
    means, quats, binding = self._place(gaussians["means"], gaussians["quats"], buffers["avatar"]["binding"], drive)
    return splat_kernels.rasterize(
        means,
        quats,
        jnp.minimum(jnp.exp(gaussians["log_scales"]), self.sizes.max_size),
        jnp.where(binding == FREE, 0.0, jax.nn.sigmoid(gaussians["opacity_logits"])),
        gaussians["sh"],
        self.subject.camera(drive),
        background=jnp.asarray(self.subject.background),
        sh_degree=self.degree,
        **probes,
        config=self.subject.raster,
        implementation=self.subject.implementation,
    )

  def _colour(self, gaussians: Params, network: Params, drive: Drive) -> dict[str, Array]:
    """The Gaussians of every frame in the first phase: all alike, in the planes' colours."""
    colours: Any = self.network.apply({"params": network}, gaussians["means"], method="colour")
    seen = gaussians | colours
    frames = len(drive["eyes"])
    return {name: jnp.broadcast_to(x, (frames, *x.shape)) for name, x in seen.items()}

  def _move(self, gaussians: Params, network: Params, drive: Drive) -> dict[str, Array]:
    """The Gaussians of every frame in the second phase."""
    deltas: Any = self.network.apply({"params": network}, gaussians["means"], drive, method="move")
    return {name: x + deltas[name] for name, x in gaussians.items()}

  def _place(self, means, quats, binding: Int[Array, "N"], drive: Drive):
    """From the head at rest to the world: with the head, or with the body."""
    of = jnp.where(binding == BODY, BODY, HEAD)
    transforms = jnp.stack([drive["head"], drive["body"]], axis=1)[:, of]  # (B, N, 4, 4)
    turns = quaternion_from_matrix(jnp.stack([drive["head"], drive["body"]], axis=1)[..., :3, :3])[:, of]
    means = jnp.einsum("...ij,...j->...i", transforms[..., :3, :3], means) + transforms[..., :3, 3]
    return means, multiply_quaternions(turns, quats), binding

  # --- Learning

  def loss(
      self, params: Params, buffers: Params, batch: Batch, key: jax.Array, step: Array, probes: Params
  ) -> tuple[dict[str, Array], dict[str, Array]]:
    del key, step
    weights = self.sizes.loss
    gaussians = self._find_gaussians(params, buffers, batch["drive"])
    output = self._rasterize(gaussians, buffers, batch["drive"], probes)
    true, mask = to_float(batch["image"]), to_float(batch["mask"])
    error = jnp.abs(output.image - true)
    lips = box_mask(batch["boxes"]["lips"], self.subject.width, self.subject.height)[..., None]
    live = (buffers["avatar"]["binding"] != FREE)[:, None]
    inside = jnp.maximum(jnp.sum(lips, axis=(1, 2, 3)), 1.0)
    terms = {
        "l1": weights.l1 * jnp.mean(error),
        "dssim": weights.dssim * (1 - jnp.mean(image_metrics.ssim(output.image, true))),
        "lips": weights.lips * jnp.mean(jnp.sum(lips * error, axis=(1, 2, 3)) / (3 * inside)),
        "mask": weights.mask * jnp.mean(jnp.abs(output.alpha - mask)),
        # What is hidden behind others has next to no gradient, of which Adam makes whole steps: it would grow over the background.
        "size": weights.size * jnp.mean(jnp.where(live, jax.nn.relu(gaussians["log_scales"] - jnp.log(self.sizes.max_size)), 0.0)),
    }
    if weights.lpips:
      terms["lpips"] = weights.lpips * jnp.mean(image_metrics.lpips(output.image, true))
    return terms, {"overflow": output.overflow, "intersections": output.intersections, "radii": output.radii}

  def rates(self, steps: int) -> dict[str, optax.Schedule]:
    """Learning rates: they fall log-linearly in each phase. In the second one they rise first, since the moments of what the
    first has not moved are zero in an Adam that has counted its steps: it would begin with three times the rate."""
    coarse, sizes = self.sizes.coarse_steps, self.sizes
    fall = lambda rate, steps: optax.exponential_decay(rate, max(steps, 1), sizes.final_share)

    def twice(rate):
      warmup = min(sizes.warmup, (steps - coarse) // 2)
      parts = [fall(rate, coarse), optax.linear_schedule(0.0, rate, max(warmup, 1)), fall(rate, steps - coarse - warmup)]
      return optax.join_schedules(parts, [coarse, coarse + warmup])

    return {name: twice(rate) for name, rate in sizes.learning_rates.items()}

  def mean_rate(self, steps: int) -> optax.Schedule:
    return self.rates(steps)["means"]

  def transforms(self, steps: int) -> dict[str, optax.GradientTransformation]:
    adam = {name: optax.adam(rate, eps=1e-15) for name, rate in self.rates(steps).items()}
    paths = {"planes": f"{self.name}/planes", "network": self.name}
    return {paths.get(name, f"avatar/{name}"): transform for name, transform in adam.items()}

  def between(self, steps: int) -> tuple[Between, ...]:
    """In the first phase, what the planes say is what density control sees, and at its end what Gaussians keep."""
    coarse, every = self.sizes.coarse_steps, self.config.density.adaptive.every
    return (Between(lambda step: step == coarse or (step < coarse and step % every == 0), self._keep_colours),)

  def _keep_colours(self, params: Params, buffers: Params, step: int, film) -> tuple[Params, Params]:
    del film
    kept = self._planes_colours(params[self.name], params["avatar"]["means"])
    params = params | {"avatar": params["avatar"] | kept}
    return params, buffers | {self.name: {"moves": jnp.asarray(step >= self.sizes.coarse_steps)}}

  @functools.cached_property
  def _planes_colours(self):
    return jax.jit(lambda network, means: self.network.apply({"params": network}, means, method="colour"))
