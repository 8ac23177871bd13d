"""What a report is made of: a run, those it is compared with, and the test conversations with their films."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from rsatalker_jax.data.captures import has_frames
from rsatalker_jax.data.conversations import find_splits, load_conversations
from rsatalker_jax.data.dualtalk import DualTalkSource
from rsatalker_jax.data.pipeline import load_clips
from rsatalker_jax.data.triplets import FilmedConversation, label_clips, load_films, load_triplets
from rsatalker_jax.evaluation.turn_taking import find_turns
from rsatalker_jax.report.scenes import Method, Scene, picture_height
from rsatalker_jax.report.turns import Moment, Turns
from rsatalker_jax.runs import TrainedRun, load_run, views, workdir as workdirs
from rsatalker_jax.social import format_relation
from rsatalker_jax.types import Conversation

SPLIT = "test"


@dataclasses.dataclass(frozen=True)
class Ablation:
  """A variant that was trained beside a run, or another seed of the run itself.

  Attributes:
    variant: the name of its folder.
    seeds: the folders of its runs that have a checkpoint, by seed.
    run: the first of them.
  """

  variant: str
  seeds: tuple[pathlib.Path, ...]
  run: TrainedRun

  @property
  def title(self) -> str:
    """What tables and captions call it."""
    return self.run.config.evaluation.title


def load_ablations(workdir: str, person: str | None, missing: list[str]) -> list[Ablation]:
  """The runs in <workdir>/ablations/<variant>/seed_<n>, variants by name.

  Args:
    workdir: the run's folder.
    person: whose avatar, as for the run itself.
    missing: gets a line for each folder without a checkpoint.

  Raises:
    InputError: a run is damaged.
  """
  found: dict[str, list[pathlib.Path]] = {}
  for folder in sorted(pathlib.Path(workdir, "ablations").glob("*/seed_*"), key=lambda x: (x.parent.name, len(x.name), x.name)):
    if workdirs.has_checkpoint(folder):
      found.setdefault(folder.parent.name, []).append(folder)
    else:
      missing.append(f"{folder} has no checkpoint yet")
  return [Ablation(variant, tuple(seeds), load_run(str(seeds[0]), person=person)) for variant, seeds in found.items()]


@dataclasses.dataclass(frozen=True, eq=False)
class Cast:
  """Who is seen.

  Attributes:
    run: whose report it is.
    ours: its motion; None if it has no generator.
    others: the ablations that generate, but for other seeds of the run itself.
  """

  run: TrainedRun
  ours: Method | None
  others: tuple[Method, ...]

  @classmethod
  def choose(cls, run: TrainedRun, ablations: Sequence[Ablation]) -> "Cast":
    """Those who have a generator; runs of one title stand for each other, whatever their folders are called."""
    title = run.config.evaluation.title
    ours = Method(title, run) if "generator" in run.params else None
    others: dict[str, Method] = {}
    for ablation in ablations:
      if ablation.title != title and ablation.title not in others and "generator" in ablation.run.params:
        others[ablation.title] = Method(ablation.title, ablation.run)
    return cls(run, ours, tuple(others.values()) if ours else ())

  @property
  def rival(self) -> Method | None:
    """The one whose curves stand beside ours: that without the social module, else the first."""
    deaf = [method for method in self.others if not method.run.config.social.enabled]
    return next(iter((*deaf, *self.others)), None)

  def drawn_by(self, method: Method) -> TrainedRun:
    """Whose avatar draws a method: its own, or the run's where it has none."""
    return method.run if "avatar" in method.run.params else self.run


@dataclasses.dataclass(frozen=True, eq=False)
class TestSet:
  """The test conversations, and the films of them that show the run's person.

  Attributes:
    run: whose data it is.
    source: None where there are none.
    turns: who speaks when, of every conversation.
    films: by the conversation's name.
  """

  run: TrainedRun
  source: DualTalkSource | None
  turns: list[Turns]
  films: dict[str, FilmedConversation]

  @classmethod
  def read(cls, run: TrainedRun, missing: list[str]) -> "TestSet":
    """Reads all voices once.

    Args:
      run: names the data.
      missing: gets a line for what is not there.

    Raises:
      InputError: a file is damaged.
    """
    if "generator" not in run.params:
      missing.append("no motion: the run has no motion stage")
      return cls(run, None, [], {})
    folder = run.data_path("conversations")
    if SPLIT not in find_splits(run.config.data):
      missing.append(f"no motion and no videos: there are no {SPLIT} conversations in {folder}")
      return cls(run, None, [], {})
    source = load_conversations(run.config.data, SPLIT)
    run.check_basis(source.basis, folder)
    turns = []
    for conversation in source:
      count = len(conversation.motion_b)
      who = (find_turns(voice, count) for voice in (conversation.speech_a, conversation.speech_b))
      turns.append(Turns(conversation.name, format_relation(conversation.relation), *who, np.zeros(count, bool)))
    numbers = {entry.name: number for number, entry in enumerate(turns)}
    films = _load_films(run, source, numbers, missing)
    for name, film in films.items():
      turns[numbers[name]].filmed[film.frames] = True
      turns[numbers[name]] = dataclasses.replace(turns[numbers[name]], relation=format_relation(film.clip.relation))
    return cls(run, source, turns, films)

  @functools.cached_property
  def _numbers(self) -> dict[str, int]:
    return {turns.name: number for number, turns in enumerate(self.turns)}

  def conversation(self, name: str) -> Conversation:
    """The conversation of this name, read anew."""
    if self.source is None:
      raise KeyError(name)
    return self.source[self._numbers[name]]

  def relation(self, conversation: Conversation) -> Int[np.ndarray, "2"]:
    """What B is told: the conversation's own label, or what its triplet knows."""
    film = self.films.get(conversation.name)
    return np.asarray(conversation.relation if film is None else film.clip.relation, np.int32)

  def scene(self, moment: Moment) -> Scene:
    """A moment as it was filmed, else before the capture's camera that the face looks at."""
    conversation = self.conversation(moment.turns.name)
    frames = np.arange(moment.start, moment.stop)
    if moment.turns.filmed[frames].all():
      return Scene.filmed(self.films[moment.turns.name], conversation, frames)
    return Scene.unfilmed(self.run, conversation, self.relation(conversation), frames, self._view)

  @functools.cached_property
  def _view(self):
    capture = self.run.talker.open_capture(self.run.data_path("capture"), "train")
    return views.front_view(self.run, picture_height(capture.height))

  def can_be_drawn(self, missing: list[str]) -> bool:
    """Whether there are an avatar and the capture whose cameras look at it; gets a line if not."""
    if "avatar" not in self.run.params:
      missing.append("no videos: the run has no avatar stage")
    elif not has_frames(self.run.data_path("capture"), "train"):
      missing.append(f"no videos: there is no capture in {self.run.data_path('capture')}")
    else:
      return True
    return False


def _load_films(
    run: TrainedRun, source: DualTalkSource, numbers: Mapping[str, int], missing: list[str]
) -> dict[str, FilmedConversation]:
  """The films of the split by the run's capture, the first of each conversation; `numbers` are conversations' in `source`."""
  manifest = run.data_path("triplets")
  if "avatar" not in run.params:
    return {}
  if not manifest.is_file():
    missing.append(f"no film: there is no {manifest}")
    return {}
  triplets = load_triplets(manifest, SPLIT)
  wanted = sorted({numbers[triplet.name] for triplet in triplets if triplet.name in numbers})
  clips = load_clips((source[number] for number in wanted), run.encode)
  films = load_films(
      manifest, SPLIT, label_clips(clips, triplets), lambda folder: run.talker.open_capture(folder, SPLIT), run.talker.head
  )
  person = run.data_path("capture").resolve()
  found: dict[str, FilmedConversation] = {}
  for film in films.conversations:
    if film.capture.root.resolve() == person:
      found.setdefault(film.name, film)
  if not found:
    missing.append(f"no film: {manifest} names none of the split {SPLIT} by the run's person")
  return found
