"""The people whose avatars a run trains: who they are, their captures, and where each one's parameters are.

    one person, `data.capture`           params = {"avatar": Gaussians}
                                         buffers = {"avatar": {binding (N,), shape (S,), static_offset (V, 3)?}}
    a bank of P people, `data.captures`  params = {"bank": Gaussians}, buffers = {"bank": ...}, each array with P in front
    further people of films in stage 3   group "others", like a bank

and in both, where corrections of the tracked FLAME parameters are trained, params = {"flame": {name: (t, _) or (P, t, _)}},
a row for each timestep of the capture.

Everybody is trained as if alone: frames are drawn from all people in turn, losses are means over frames, and each person of a
bank has an optimizer of their own, which rests while no frame shows them.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from rsatalker_jax.avatar import Avatar, Gaussians, join_bank, select, stack_avatars
from rsatalker_jax.data.capture_collection import CaptureCollection
from rsatalker_jax.data.captured_people import find_captured_people
from rsatalker_jax.data.captures import Capture
from rsatalker_jax.data.triplets import Films
from rsatalker_jax.errors import InputError
from rsatalker_jax.head import FlamePose
from rsatalker_jax.sharding import BANK
from rsatalker_jax.talker import Params, Talker
from rsatalker_jax.training import optimizers
from rsatalker_jax.training.rendering import init_avatar_group, to_frame_example, triangle_sizes
from rsatalker_jax.training.stage_inputs import StageInputs

# The group of parameters and buffers with the people of other films than the run's own.
OTHERS = "others"


@dataclasses.dataclass(frozen=True)
class People:
  """The people whom frames show, and the parameters that draw them.

  Attributes:
    groups: of parameters that hold them, in the order of their numbers: "avatar", the run's one person; "bank", the run's
      several people; or "avatar" and `OTHERS`.
    names: of the people, by number.
    captures: likewise, of the split train.
    init: params and buffers of the groups, and of the corrections, as training begins.
    sizes: of each person's triangles at rest, (P, F, 1) metres.
    timesteps: of each person's capture, ascending, by which their corrections of FLAME parameters are kept; None for somebody
      without any.
  """

  groups: tuple[str, ...]
  names: tuple[str, ...]
  captures: tuple[Capture, ...]
  init: tuple[Params, Params]
  sizes: Float[Array, "P F 1"]
  timesteps: tuple[Int[np.ndarray, "_"] | None, ...]

  @classmethod
  def of(cls, inputs: StageInputs) -> "People":
    """The run's own people.

    Raises:
      InputError: their captures do not fit each other or the head; see `Talker.open_captures`.
    """
    return cls._make(inputs, inputs.talker.open_captures(find_captured_people(inputs.config.data), "train"), ())

  @classmethod
  def of_films(cls, inputs: StageInputs, films: Films) -> "People":
    """The run's own people and, where that is one person, those of further films, whom no stage before has trained.

    Raises:
      InputError: where the run has several people, a film of somebody else, or a person whom no film shows; and see `of`.
    """
    data = inputs.config.data
    opened = {capture.root.resolve(): capture for capture in films.captures}
    own = find_captured_people(data)
    roots = [folder.resolve() for folder in own.folders]
    if data.captures:
      manifest = inputs.path("triplets")
      for root in opened:
        if root not in roots:
          raise InputError(manifest, "capture", root, "one of data.captures, the people of this run")
      for name, root in zip(own.names, roots):
        if root not in opened:
          raise InputError(manifest, "capture", f"no training triplet of {root}", f"a film of {name}, as of all of data.captures")
    others = [capture for root, capture in opened.items() if root not in roots]
    return cls._make(inputs, inputs.talker.open_captures(own, "train"), others)

  @classmethod
  def _make(cls, inputs: StageInputs, own: CaptureCollection, others: Sequence[Capture]) -> "People":
    several = bool(inputs.config.data.captures)
    captures = (*own.captures, *others)
    params, buffers = _stack(inputs, own.captures) if several else init_avatar_group(inputs, own.captures[0])
    if others:
      for group, theirs in zip((params, buffers), _stack(inputs, others)):
        group[OTHERS] = theirs[BANK]
    rates = [name for name, rate in inputs.config.avatar.flame_learning_rates.items() if rate]
    timesteps: list[np.ndarray | None] = [None] * len(captures)
    if rates:
      timesteps[: len(own.captures)] = [np.unique(capture.timesteps) for capture in own.captures]
      rows = max(map(len, filter(lambda x: x is not None, timesteps)))
      flame = own.captures[0].read_flame([0])
      leading = (len(own.captures), rows) if several else (rows,)
      params["flame"] = {name: jnp.zeros((*leading, flame[name].shape[1])) for name in rates}
    return cls(
        groups=((BANK,) if several else ("avatar",)) + (OTHERS,) * bool(others),
        names=(*own.names, *(capture.root.name for capture in others)),
        captures=captures,
        init=(params, buffers),
        sizes=jnp.stack([triangle_sizes(inputs.talker, capture) for capture in captures]),
        timesteps=tuple(timesteps),
    )

  @property
  def alone(self) -> bool:
    """Whether there is but one person, whose Gaussians are then shared by all frames."""
    return self.groups == ("avatar",)

  def each(self, function: Callable) -> Callable:
    """`function` of one person's arrays for all people of the run's own group; of arrays with people in front in a bank."""
    return jax.vmap(function) if self.groups[0] == BANK else function

  def number(self, root: Any) -> int:
    """Whose a capture's folder is."""
    return [capture.root.resolve() for capture in self.captures].index(root.resolve())

  def all(self, talker: Talker, params: Params, buffers: Params) -> Avatar:
    """The avatars of everybody: one person's, or a bank."""
    bank = lambda group: Avatar(gaussians=Gaussians(**params[group]), **buffers[group])
    if self.groups[0] == BANK:
      return bank(BANK)
    own = talker.avatar(params, buffers)
    return join_bank(own, bank(OTHERS)) if OTHERS in self.groups else own

  def show(self, talker: Talker, params: Params, buffers: Params, identity: Int[Array, "B"]) -> Avatar:
    """The avatar of every frame: one for all of them, or one each."""
    avatars = self.all(talker, params, buffers)
    return avatars if self.alone else select(avatars, identity)

  def one(self, talker: Talker, params: Params, buffers: Params, number: int) -> Avatar:
    """One person's avatar."""
    avatars = self.all(talker, params, buffers)
    return avatars if self.alone else select(avatars, number)

  def row(self, person: int, timestep: int) -> int:
    """Where the corrections of a moment are kept; -1 where it has none."""
    timesteps = self.timesteps[person]
    return -1 if timesteps is None else int(np.searchsorted(timesteps, timestep))

  def correct(self, params: Params, flame: Mapping[str, Array], identity: Int[Array, "K"], row: Int[Array, "K"]) -> FlamePose:
    """The tracked parameters of frames with their corrections."""
    corrected = dict(flame)
    for name, corrections in params.get("flame", {}).items():
      found = corrections[identity, row] if self.groups[0] == BANK else corrections[row]
      corrected[name] = corrected[name] + jnp.where(row[:, None] >= 0, found, 0.0)
    return corrected

  def example(self, item: Mapping[str, Any]) -> dict[str, Any]:
    """What a step needs of a captured frame (`CaptureCollection`): picture, view and pose, whose it is, and its row."""
    identity = int(item["identity"])
    row = np.int32(self.row(identity, int(item["timestep"])))
    return to_frame_example(item) | {"identity": np.int32(identity), "row": row}

  def transforms(self, gaussians: Mapping[str, optax.GradientTransformation]) -> dict[str, optax.GradientTransformation]:
    """Transforms of one person's Gaussians (`optimizers.gaussian_optimizer`) for all groups, by label."""
    found = {}
    for group in self.groups:
      for label, transform in gaussians.items():
        found[label.replace("avatar/", f"{group}/")] = transform if group == "avatar" else optimizers.per_person(transform)
    return found

  def flame_transforms(self, rates: Mapping[str, float]) -> dict[str, optax.GradientTransformation]:
    """Adam for the corrections of FLAME's parameters, by label."""
    own = optimizers.per_person if self.groups[0] == BANK else lambda transform: transform
    return {f"flame/{name}": own(optax.adam(rate)) for name, rate in rates.items() if rate}


def _stack(inputs: StageInputs, captures: Sequence[Capture]) -> tuple[Params, Params]:
  """Group "bank" of params and buffers of several people as training begins."""
  bank = stack_avatars([inputs.talker.avatar(*init_avatar_group(inputs, capture)) for capture in captures])
  values = {field.name: getattr(bank, field.name) for field in dataclasses.fields(bank)}
  params = dict(vars(values.pop("gaussians")))
  return {BANK: params}, {BANK: {name: value for name, value in values.items() if value is not None}}
