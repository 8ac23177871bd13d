"""The stages of training at their real sizes, of a config whose data are nowhere: what is read is zeros of the real shapes.

A stage is made by its own maker (`commands.train.make_stage`) and is what train.py would run; only what it reads stands in:
one conversation, one film, a head of FLAME's sizes. Nothing is computed with them but the first state's shapes.
"""

import dataclasses
import functools
import pathlib
from unittest import mock

import jax
import numpy as np
from ml_collections import ConfigDict

from rsatalker_jax import talker as talkers
from rsatalker_jax.data.capture_collection import CaptureCollection
from rsatalker_jax.data.captured_people import CapturedPeople
from rsatalker_jax.data.captures import Capture
from rsatalker_jax.data.pipeline import MotionClip
from rsatalker_jax.data.triplets import FilmedConversation, Films
from rsatalker_jax.head import HeadModel
from rsatalker_jax.talker import Talker
from rsatalker_jax.training.stage_inputs import StageInputs
from rsatalker_jax.types import MOTION_DIM


@dataclasses.dataclass(frozen=True)
class DataSizes:
  """What a stage's shapes take from its data and not from the config.

  Attributes:
    features: width of a voice's features.
    image: width and height of a capture's frames, pixels.
    timesteps: of a capture.
    vertices, faces, shapes, expressions: of the head.
    windows: that the training conversations hold, at least a batch.
  """

  features: int = 1024  # Of the large Wav2Vec 2.0.
  image: tuple[int, int] = (550, 802)  # NeRSemble's, as GaussianAvatars takes them.
  timesteps: int = 2500
  vertices: int = 5143  # FLAME with teeth.
  faces: int = 10144
  shapes: int = 300
  expressions: int = 100
  windows: int = 2**14


def make_head(sizes: DataSizes) -> HeadModel:
  """A head of these sizes with a mouth; on the host, where it takes no device."""
  v, f = sizes.vertices, sizes.faces
  zeros = lambda *shape: np.zeros(shape, np.float32)
  weights = np.tile(np.eye(5, dtype=np.float32)[1], (v, 1))
  corners = (np.arange(f)[:, None] + np.arange(3)) % v
  return HeadModel(
      v_template=np.random.default_rng(0).normal(size=(v, 3)).astype(np.float32),
      shape_directions=zeros(v, 3, sizes.shapes),
      expression_directions=zeros(v, 3, sizes.expressions),
      pose_directions=zeros(v, 3, 36),
      joint_regressor=zeros(5, v),
      weights=weights,
      basis="flame2023",
      faces=corners.astype(np.int32),
      lip_vertices=np.array([0, 1]),
  )


class BlankCapture(Capture):
  """A film of one camera that shows nothing."""

  def __init__(self, root: pathlib.Path, sizes: DataSizes):
    self.root = root
    self.width, self.height = sizes.image
    self.shape, self.static_offset = np.zeros(sizes.shapes, np.float32), np.ones((sizes.vertices, 3), np.float32)
    self.num_expression = sizes.expressions
    self.timesteps = np.arange(sizes.timesteps, dtype=np.int32)
    self.camera_indices = np.zeros(sizes.timesteps, np.int32)

  def __len__(self) -> int:
    return len(self.timesteps)

  def __getitem__(self, i: int) -> dict:
    return {
        "image": np.zeros((self.height, self.width, 3), np.float32),
        "mask": np.ones((self.height, self.width), np.float32),
        "world_to_camera": np.eye(4, dtype=np.float32),
        "intrinsics": np.eye(3, dtype=np.float32),
        "timestep": self.timesteps[i],
        "camera_index": self.camera_indices[i],
        "flame": {name: x[0] for name, x in self.read_flame([i]).items()},
    }

  def read_flame(self, items) -> dict[str, np.ndarray]:
    widths = dict(expression=self.num_expression, rotation=3, neck=3, jaw=3, eyes=6, translation=3)
    return {name: np.zeros((len(items), width), np.float32) for name, width in widths.items()}


class BlankTalker(Talker):
  """A talker for which every folder is a blank capture."""

  sizes = DataSizes()

  def open_capture(self, folder, split: str) -> Capture:
    del split
    return BlankCapture(pathlib.Path(folder), self.sizes)

  def open_captures(self, people: CapturedPeople, split: str) -> CaptureCollection:
    return CaptureCollection([self.open_capture(folder, split) for folder in people.folders], people.names)


class BlankInputs(StageInputs):
  """Inputs whose conversations and films are blank."""

  @property
  def sizes(self) -> DataSizes:
    return self.talker.sizes

  @functools.cached_property
  def training_clips(self) -> list[MotionClip]:
    config = self.config
    frames = max(config.motion.window, config.joint.window)
    voice = np.broadcast_to(np.float32(0), (frames, self.sizes.features))
    motion = np.zeros((frames, MOTION_DIM), np.float32)
    return [MotionClip("blank", voice, motion, voice, motion, np.zeros(2, np.int32), "flame2023")] * self.sizes.windows

  @property
  def validation_clips(self) -> list[MotionClip]:
    return []

  @functools.cached_property
  def films(self) -> Films:
    clip, capture = self.training_clips[0], self.talker.open_capture(self.path("capture"), "train")
    frames = np.arange(len(clip.motion_b))
    film = FilmedConversation(clip, capture, 0, frames, frames % len(capture), np.zeros(3, np.float32), 0)
    return Films((film,), (capture,))

  @functools.cached_property
  def statistics(self) -> dict:
    statistics = {"motion_mean": np.zeros(MOTION_DIM, np.float32), "motion_std": np.ones(MOTION_DIM, np.float32)}
    return statistics | ({} if self.lip_opening is None else {"lip_std": np.float32(1)})


def make_blank_inputs(config: ConfigDict, mesh: jax.sharding.Mesh, sizes: DataSizes) -> BlankInputs:
  """What the makers of stages want, of a config whose data are not here; prints nothing."""
  with mock.patch.object(talkers, "load_head", lambda **_: make_head(sizes)):
    talker = talkers.make_talker(config)
  fields = {field.name: getattr(talker, field.name) for field in dataclasses.fields(talker)}
  talker = type("SizedTalker", (BlankTalker,), {"sizes": sizes})(**fields)
  return BlankInputs(config=config, talker=talker, encode=None, mesh=mesh, say=lambda _: None)
