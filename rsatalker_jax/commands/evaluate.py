"""What eval.py does: scores what a run has, motion and frames, on one split, and writes tables and a sheet of frames."""

import collections
import dataclasses
import io
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from rsatalker_jax import sharding
from rsatalker_jax.baselines.image import METHODS
from rsatalker_jax.commands import film_scores
from rsatalker_jax.commands.compared_runs import find_compared, score_compared
from rsatalker_jax.commands.image_protocols import SPEECH_ONLY, TRUE_POSE, MethodRun
from rsatalker_jax.data.conversations import load_conversations
from rsatalker_jax.data.dualtalk import DualTalkSource
from rsatalker_jax.data.pipeline import MotionClip
from rsatalker_jax.data.triplets import FilmedConversation, Triplet, load_triplets
from rsatalker_jax.errors import InputError
from rsatalker_jax.evaluation import (
    demo_world,
    dynamics_metrics,
    long_conversation,
    mesh_metrics,
    motion_metrics,
    relation_probe,
    result_tables,
    scoring,
    tables,
)
from rsatalker_jax.evaluation.ablations import compare_frames, difference_table
from rsatalker_jax.evaluation.cases import ConversationCases
from rsatalker_jax.head import LipOpening, make_lip_opening
from rsatalker_jax.media.video import to_uint8
from rsatalker_jax.runs import TrainedRun, load_config, load_run, workdir as workdirs
from rsatalker_jax.talker import SpeechEncoder
from rsatalker_jax.types import STAGES

_TRUTH, _CONSTANT = "true motion", "constant training mean"
_BEFORE_JOINT = STAGES[: STAGES.index("joint")]


def score_run(
    workdir: str, split: str = "test", *, config: ConfigDict | None = None, part: str | None = None
) -> tuple[str, list[str]]:
  """Scores a run and writes results.json, results.md, results.tex and, where frames were scored, frames.png.

  They are written to <workdir>/evaluation for the split test, to <workdir>/evaluation/<split> for others.

  Args:
    workdir: the run. What it has is scored: motion, if it has a generator; frames, if it has an avatar: of the films of the
      conversations, or without a generator those of its capture, in their tracked poses alone. Of an image-based baseline
      frames of the films are scored, by `image_protocols`, and so are those of baselines that stand beside the run.
    split: of the conversations and their films: val, test or ood.
    config: the whole config, if it was given. It must be the one that made the run; what may differ and matters here, its
      sections `data` and `evaluation`, is then taken from it.
    part: "motion" or "frames" alone; None: both.

  Returns:
    The Markdown; and a line for each inequality that is violated, which no motion can do: a metric is broken. They, and a
    collapse of motion, are also said on stderr.

  Raises:
    InputError: another config, a run with a generator and no conversations in the split, or nothing that can be scored.
  """
  if config is not None:
    workdirs.check_workdir(workdir, config, must_exist=True)
  runs = _load_runs(workdir, config)
  run = next(iter(runs.values()))
  results: dict[str, Any] = {
      "metrics_version": tables.METRICS_VERSION,
      "run": workdir,
      "title": run.config.evaluation.title,
      "seed": run.config.seed,
      "stages": run.stages,
      "split": split,
      "checks": [],
  }
  sections, latex, missing, violations = [], [], [], []

  if part == "frames":
    missing.append("motion is not scored: frames alone were asked for")
  elif "generator" in run.params:
    motion = score_motion(run, split, workdir)
    results |= motion.results()
    sections.append(motion.report())
    latex.append(result_tables.motion_table(motion.generated, with_published=True).latex())
    violations = motion.violations
  else:
    missing.append("motion is not scored: the run has no motion stage")

  frames, reason = None, "motion alone was asked for"
  if part != "motion":
    frames, reason = _score_frames(runs, workdir, config, split)
  if frames is not None:
    results |= {"frames": frames.rows, "films": frames.by_film, "frames_each": frames.each, "flicker": frames.flicker}
    results |= {"people": frames.by_person} if len(frames.by_person) > 1 else {}
    sections.append(_frame_report(frames, filmed="generator" in run.params))
    latex += [table.latex() for table in _frame_tables(frames)]
  else:
    missing.append(f"frames are not scored: {reason}")
  if not sections:
    raise InputError(workdir, "", "; ".join(missing), f"a run of which something can be scored on {split}")

  results |= {"usage": workdirs.read_usage(workdir), "missing": missing}
  took = "## What each stage took\n\nDashes: it was trained by a version that did not measure.\n\n"
  sections.append(took + result_tables.usage_table(results["usage"]).markdown())
  for line in results["checks"]:
    print(f"{workdir}: {line}", file=sys.stderr)
  head = f"Run {workdir} ({run.stages}), split {split}, metrics of version {tables.METRICS_VERSION}\n"
  markdown = "\n".join([head, *sections]) + "".join(f"\n{line[0].upper()}{line[1:]}.\n" for line in missing)
  folder = pathlib.Path(workdir) / "evaluation"
  folder = folder if split == "test" else folder / split
  sheet = {} if frames is None else {"frames.png": _png(frames.sheet)}
  tables.write_results(folder, results, markdown, "\n".join(latex), **sheet)
  if frames is None:
    (folder / "frames.png").unlink(missing_ok=True)  # Of an earlier evaluation.
  return markdown, violations


def _load_runs(workdir: str, config: ConfigDict | None, stages: Sequence[str] = STAGES) -> film_scores.Runs:
  """The run, by its capture; once for each of its people where it has a bank of them. `config` as in `score_run`."""
  run = load_run(workdir, stages, image_methods=True)
  if config is not None:
    sections = {name: config[name].to_dict() for name in ("data", "evaluation")}
    run = dataclasses.replace(run, config=ConfigDict(run.config.to_dict() | sections))
  people = [run.of_person(number) for number in range(len(run.names))] if sharding.BANK in run.params else [run]
  return {run.data_path("capture").resolve(): run for run in people}


# --- Motion


@dataclasses.dataclass(frozen=True)
class MotionResults:
  """What motion was scored, and how it is told.

  Attributes:
    summary: of the conversations, in a line.
    title: of the run's own row.
    rows: scores by row of the tables, one for each seed that was trained; the truth first, then the run's own.
    minutes: of a long conversation (`long_conversation.error_by_minute`); None where there is none so long.
    notes: what could not be measured, and why.
  """

  summary: str
  title: str
  rows: dict[str, list[scoring.MotionScores]]
  minutes: list[dict[str, float]] | None
  notes: list[str]

  @property
  def own(self) -> scoring.MotionScores:
    return self.rows[self.title][0]

  @property
  def means(self) -> dict[str, list[dict[str, float]]]:
    return {title: [scores.means for scores in seeds] for title, seeds in self.rows.items()}

  @property
  def generated(self) -> dict[str, list[dict[str, float]]]:
    return {title: seeds for title, seeds in self.means.items() if title != _TRUTH}

  def _lines(self, name: str) -> list[str]:
    """Violations or collapses of all rows."""
    lines = []
    for title, seeds in self.rows.items():
      for number, scores in enumerate(seeds):
        row = f"{title}, seed {number + 1} of {len(seeds)}" if len(seeds) > 1 else title
        lines += [f"{row}: {line}" for line in getattr(scores, name)]
    return lines

  @property
  def violations(self) -> list[str]:
    return [f"VIOLATED: {line}" for line in self._lines("violations")]

  @property
  def alarms(self) -> list[str]:
    """Collapses, but for the row that is meant to stand still."""
    return [f"{dynamics_metrics.COLLAPSE_ALARM}{line}" for line in self._lines("collapsed") if not line.startswith(f"{_CONSTANT}: ")]

  def results(self) -> dict:
    """The keys of results.json that are of motion."""
    own = {title: self.rows[title][0].each for title in (_TRUTH, self.title)}
    results = {"summary": self.summary, "motion": self.means, "clips_each": own, "checks": self.violations + self.alarms}
    results |= {} if self.own.told is None else {"relation_test": self.own.told}
    return results | ({} if self.minutes is None else {"minutes": self.minutes})

  def report(self) -> str:
    """Tables of all that was scored, with what is needed to read them."""
    rows, truth = self.means, self.means[_TRUTH][0]
    parts = [f"{self.summary}. docs/evaluation.md defines every measure.\n"]

    def tell(title: str, text: str, table: tables.Table) -> None:
      if table.columns:
        parts.append(f"## {title}\n\n{text}\n\n{table.markdown()}")

    tell(
        "Table 1: motion of unseen conversations",
        "Best in bold" + "; mean ± half the distance between the seeds" * any(len(seeds) > 1 for seeds in rows.values())
        + ". The last rows are of other people, other faces and another tracker: they compare with none above. † marks those that "
        "break one of the inequalities below.",
        result_tables.motion_table(self.generated, with_published=True),
    )
    parts.append(self._checks())
    if self.own.told is not None:
      tell(
          "What the relation is worth",
          f"The run itself, told the true relation, none, and a random other one: means over {truth['relation/clips']} clips, and "
          "differences with their 95 % confidence interval (paired bootstrap over clips). Above 0 knowing helps.",
          result_tables.relation_test_table(self.own.told),
      )
    if truth.get("relation/clips"):
      tell(
          "The relation that the motion shows",
          f"Relation that a probe fitted to true motion names, share of {truth['relation/clips']} clips "
          f"({truth['relation/left_out']} left out); standard error at most {0.5 / np.sqrt(truth['relation/clips']):.2f}.",
          result_tables.relation_table(rows, (_TRUTH,)),
      )
    tell(
        "Lips",
        "Closed: less than 0.5 mm apart. Bilabials: within a frame of the sound.",
        result_tables.lip_table(rows, (_TRUTH, _CONSTANT)),  # What never closes never closes in error.
    )
    tell(
        "Error while speaking and while listening",
        "MSE of the frames in which B speaks, and of those in which A speaks and B does not.",
        result_tables.kind_error_table(self.generated),
    )
    tell(
        "Faces in millimetres and degrees, speaking and listening apart",
        "LVE: the largest error of a lip vertex, root mean square over frames (UniLS's definition). FDD, JDD, PDD: by how much the "
        "standard deviation over time of upper face, jaw and head differs from the truth's.",
        result_tables.deviation_table(self.generated),
    )
    tell(
        "How motion moves",
        "Variation over time and jerk as ratios to the truth's: like the truth is good, more is not better.",
        result_tables.liveliness_table(rows),
    )
    if "backchannel/ends" in truth:
      tell(
          "Backchannels",
          f"At {truth['backchannel/ends']} ends of a partner's phrase, while B is silent: share with a nod (a smile) that begins in the "
          "0.6 s after it and, for comparison, in the 0.6 s before it; mean delay; distance of the delays' distribution from the "
          "truth's (1-Wasserstein).",
          result_tables.backchannel_table(rows),
      )
    if self.minutes:
      tell(
          f"Error by minute of a conversation of {len(self.minutes)} minutes",
          "Clips of one relation joined and generated in one go; and the same frames generated clip by clip, since minutes differ "
          "in what is said in them.",
          result_tables.minute_table(self.minutes),
      )
    tell(
        "Diversity, and correlation with the partner",
        "SID: as much as the truth's, by clusters of all clips. rPCC: less is better.",
        result_tables.diversity_table(rows, (_TRUTH,)),
    )
    tell(
        "SID as other code computes it",
        "k-means fitted to each clip alone: to its truth, of the prediction's frames (TIMAR's `sid`), and swapped, to its prediction, "
        "of the truth's frames (DualTalk's script). Not comparable with SID above.",
        result_tables.clip_diversity_table(rows),
    )
    return "\n".join(parts) + "".join(f"\n{note}.\n" for note in self.notes)

  def _checks(self) -> str:
    """What the checks say, in words."""
    clips = len(self.own.each)
    lines = self.violations + self.alarms
    if not self.violations:
      lines.append(f"Of every row, FD ≤ P-FD and FD ≤ D·MSE·T/(T−1) hold in all {clips} clips, as they must.")
    if not self.alarms:
      lines.append(f"No generator has collapsed: all vary over time by at least {dynamics_metrics.COLLAPSED:g} of the truth's variance.")
    if collapsed := self.rows[_CONSTANT][0].collapsed:
      lines.append(f"The row *{_CONSTANT}* stands still, as it is meant to: {', '.join(line.split()[0] for line in collapsed)}.")
    return "## Checks\n\n" + "".join(f"- {line}\n" for line in lines)


def score_motion(run: TrainedRun, split: str, workdir: str) -> MotionResults:
  """Scores a run, what it is compared with, and the truth.

  Compared are the motion stages that `make compare` trains, <workdir>/compare/<variant>/seed_<n>, by their expression's error.
  """
  source = load_conversations(run.config.data, split)
  run.check_basis(source.basis, run.data_path("conversations"))
  scorer, notes = make_scorer(run, source, split)
  mean = run.buffers["generator"]["motion_mean"]
  compared: dict[str, list[scoring.MotionScores]] = {}
  scorers = {run.config.speech.to_json(): scorer}  # By what is heard: a causal run has other features of the same clips.
  scored = {"split": split, "conversations": source.summary(), "clips": source.names, "data": run.config.data.to_json()}
  folders, unborn = find_compared(workdir, run.config)
  notes += [f"{folder} has kept no step yet, so it has no row" for folder in unborn]
  for folder in folders:
    other = load_run(str(folder), image_methods=True)
    if "generator" not in other.params:
      continue
    speech = other.config.speech.to_json()
    if speech not in scorers:
      scorers[speech] = dataclasses.replace(scorer, cases=make_cases(other, source, split))
    rows = score_compared(folder, other, scorers[speech].score, run.config.evaluation.samples, scored)
    for title, scores in rows.items():
      compared.setdefault(title, []).append(scores)
  error = lambda title: np.mean([scores.means["mse/expression"] for scores in compared[title]])
  title = run.config.evaluation.title
  title = f"{title}, this run" if title in compared else title
  rows = {
      _TRUTH: [scorer.score_truth()],
      title: [scorer.score(run.generate, test_relation=run.talker.knows_relation)],
      _CONSTANT: [scorer.score(lambda clip: np.tile(mean, (len(clip.motion_a), 1)))],
  }
  rows |= {title: compared[title] for title in sorted(compared, key=error)}
  conversation = long_conversation.join_clips(_longest_relation(run, source, split))
  minutes = None if conversation is None else long_conversation.error_by_minute(run.generate, conversation)
  return MotionResults(source.summary(), title, rows, minutes, notes)


def make_scorer(run: TrainedRun, source: DualTalkSource, split: str) -> tuple[scoring.MotionScorer, list[str]]:
  """What motion is scored with, a relation probe fitted to the true training motion among it; and what it lacks, in words."""
  training = load_conversations(run.config.data, "train")
  opening, parts = make_lip_opening(run.talker.head), mesh_metrics.find_face_parts(run.talker.head)
  names = run.talker.head.expression_names
  scorer = scoring.MotionScorer(
      cases=make_cases(run, source, split),
      clusters=motion_metrics.fit_motion_clusters(motion_b for _, motion_b, _ in source.motions()),
      probe=relation_probe.fit_relation_probe(training.motions()),
      lips=None if opening is None else LipOpening(opening),
      mesh=None if parts is None else mesh_metrics.MeshMetrics(parts),
      expression_names=names,
  )
  lacks = {
      "Lips' opening is not measured: the head has no mouth": opening is None,
      "LVE and FDD are not measured: the head names no regions (FLAME's are in a file of their own, config.head.masks)": parts is None,
      "Blinks and smiles are not counted: the head does not name its expression coefficients": not dynamics_metrics.find_lids(names),
      "Relations are not probed: the training conversations have fewer than two": scorer.probe is None,
  }
  return scorer, [note for note, holds in lacks.items() if holds]


def make_cases(
    run: TrainedRun, source: DualTalkSource, split: str, encode: SpeechEncoder | None = None
) -> ConversationCases:
  """The conversations as a run hears them, or as `encode` does, with the relations that their triplets know."""
  # Elsewhere than in the embedded world nobody has written down who says what when.
  find_closures = demo_world.find_bilabials if run.config.data.embedded_root else None
  return ConversationCases(source, encode or run.encode.open, _triplets(run, split), find_closures)


def _triplets(run: TrainedRun, split: str) -> list[Triplet]:
  manifest = run.data_path("triplets")
  return load_triplets(manifest, split) if manifest.is_file() else []


def _longest_relation(run: TrainedRun, source: DualTalkSource, split: str) -> Iterator[MotionClip]:
  """The clips of the relation that has most frames."""
  names, frames = collections.defaultdict(set), collections.Counter()
  for name, (_, motion, relation) in zip(source.names, source.motions(), strict=True):
    names[tuple(relation)].add(name)
    frames[tuple(relation)] += len(motion)
  return make_cases(run, source, split).clips(names[max(frames, key=frames.__getitem__)])


# --- Frames


def _score_frames(
    runs: film_scores.Runs, workdir: str, config: ConfigDict | None, split: str
) -> tuple[film_scores.FrameScores | None, str]:
  """Scores frames, of films where the run generates; or why there are none."""
  run = next(iter(runs.values()))
  if "avatar" not in run.params and not run.draws_images:
    return None, "the run has no avatar stage"
  earlier = {}
  begun = workdirs.has_checkpoint(workdir, _BEFORE_JOINT)
  if "joint:" in run.stages and begun:
    before = _load_runs(workdir, config, _BEFORE_JOINT)
    # A run may have begun with its joint stage, or have taken an earlier one from elsewhere: there is no row then.
    earlier = {folder: run for folder, run in before.items() if {"generator", "avatar"} <= run.params.keys()}
  people, methods = None, []
  if "generator" in run.params or run.draws_images:
    people, reason = find_run_films(runs, split)
    if not people:
      return None, reason
    if run.draws_images:
      methods = [MethodRun(run.config.evaluation.title, run, people[0])]
    else:
      methods = _load_methods(runs, workdir, split)
  return film_scores.score_films(runs, earlier, split, people, methods)


def find_run_films(runs: film_scores.Runs, split: str) -> tuple[list[list[FilmedConversation]], str]:
  """`film_scores.find_films` of the conversations that the first run's config names."""
  run = next(iter(runs.values()))
  cases = make_cases(run, load_conversations(run.config.data, split), split)
  return film_scores.find_films(runs, split, cases.clips, [triplet.name for triplet in _triplets(run, split)])


def _load_methods(runs: film_scores.Runs, workdir: str, split: str) -> list[MethodRun]:
  """The image-based baselines that stand beside a run and have learnt one of its people."""
  run, found = next(iter(runs.values())), []
  for folder in find_compared(workdir, run.config)[0]:
    if load_config(str(folder))["avatar"]["method"] in METHODS:
      other = load_run(str(folder), image_methods=True)
      # The run's data, as its other rows are of; but what is heard is encoded as the baseline has learnt to hear.
      data = run.config.data.to_dict() | {"capture": other.config.data.capture}
      found.append((folder, dataclasses.replace(other, config=ConfigDict(other.config.to_dict() | {"data": data}))))
  titles = [other.config.evaluation.title for _, other in found]
  methods = []
  for title, (folder, other) in zip(titles, found):
    people, _ = find_run_films({other.data_path("capture").resolve(): other}, split)
    if people and people[0][0].capture.root.resolve() in runs:
      methods.append(MethodRun(f"{title}, {folder.name}" if titles.count(title) > 1 else title, other, people[0]))
  return methods


def _frame_tables(scores: film_scores.FrameScores) -> list[tables.Table]:
  """Of whole frames, and of the lips' crops where there are any."""
  # Tracked motion is the truth's, and so are true poses: what can be reached, not what somebody did.
  unranked = [title for title in scores.rows if title in (film_scores.TRACKED, film_scores.HELD_OUT) or title.endswith(TRUE_POSE)]
  lips = {
      title: {name.removeprefix("lips/"): value for name, value in row.items() if name.startswith("lips/")}
      for title, row in scores.rows.items()
  }
  lips = {title: row for title, row in lips.items() if row}
  frames = result_tables.image_table(scores.rows, unranked=unranked, with_published=True)
  return [frames, *([result_tables.image_table(lips, unranked=unranked)] if lips else [])]


def _frame_report(scores: film_scores.FrameScores, *, filmed: bool) -> str:
  """Tables of the frames, with what is needed to read them."""
  films = f"{scores.count} frames of {len(scores.by_film)} film{'s' * (len(scores.by_film) > 1)}"
  report = f"## Table 2: rendered frames{' of unseen conversations' * filmed}\n\n{films[0].upper()}{films[1:]}. "
  if len(scores.by_person) > 1:
    report += f"Means over the frames of {' and '.join(scores.by_person)}, each drawn with their own avatar. Each of them by "
    report += "themselves, with methods that have learnt one person alone, is further down. "
  report += "The last rows are of other people's films, with a network behind LPIPS that the paper does not name.\n\n"
  whole, *lips = (table.markdown() for table in _frame_tables(scores))
  if any(title.endswith(SPEECH_ONLY) for title in scores.rows):
    report += (
        "Image-based baselines have three rows. *Speech only*: pose and eyes are those of the training film, played to and fro, as "
        "published for new speech. *True pose and eyes*: the film's own, as published where a person drives herself. *Our generator's "
        "pose and eyes*: what the renderer alone is worth. Their shoulders are learnt. Published scores of these methods are told more "
        "of the answer: the true pose and eyes, and, but for torso branches, the pixels of the true shoulders and of what is behind. "
        "They compare with none of these rows.\n\n"
    )
  report += whole
  if lips:
    report += "\nThe lips alone: a square a quarter as high as the picture, about where the head's pose puts them.\n\n" + lips[0]
  for person, rows in scores.by_person.items() if len(scores.by_person) > 1 else ():
    own = [title for title in rows if title in (film_scores.TRACKED, film_scores.HELD_OUT)]
    report += f"\nOf {person} alone:\n\n{result_tables.image_table(rows, unranked=own).markdown()}"
  report += _joint_gain(scores)
  if len(scores.by_film) > 1:
    report += "\nBy film, PSNR in dB:\n\n" + result_tables.film_table(scores.by_film).markdown()
  if flicker := scores.flicker:
    report += (
        f"\nSuccessive frames differ by {flicker['film']:.5f} in the film and by {flicker['avatar']:.5f} in the avatar with "
        f"tracked motion (mean absolute difference); these differences differ by {flicker['difference']:.5f}."
    )
    for net in sorted(name.split("_")[1] for name in flicker if name.startswith("lpips_") and name.endswith("_film")):
      film, avatar, difference = (flicker[f"lpips_{net}_{name}"] for name in ("film", "avatar", "difference"))
      report += f" By LPIPS ({net}): {film:.5f} and {avatar:.5f}, {difference:.5f} apart."
    report += "\n"
  return report


def _joint_gain(scores: film_scores.FrameScores) -> str:
  """What the joint stage made of generated motion, of all films and of each, with intervals; empty without that stage."""
  of = lambda films: {0: {"frames_each": {name: scores.each[name] for name in films}}}
  compare = lambda films: compare_frames(of(films), of(films), film_scores.GENERATED, film_scores.BEFORE_JOINT)
  groups = {"all films": list(scores.each)} | ({name: [name] for name in scores.each} if len(scores.each) > 1 else {})
  gains = {title: cells for title, films in groups.items() if (cells := compare(films))}
  if not gains:
    return ""
  return (
      "\nWhat the joint stage made better in generated motion, frame by frame (more is better, in errors too), with 95 % intervals of a "
      "bootstrap over blocks of two seconds:\n\n" + difference_table(gains).markdown()
  )


def _png(image: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(to_uint8(image)).save(buffer, format="PNG")
  return buffer.getvalue()
