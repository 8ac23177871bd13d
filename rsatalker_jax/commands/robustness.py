"""What `python -m rsatalker_jax robustness` does: a run's lips when voices come from real microphones, rooms and lines."""

import pathlib
from collections.abc import Sequence

import numpy as np

from rsatalker_jax.commands.evaluate import make_cases
from rsatalker_jax.data.audio import read_wav
from rsatalker_jax.data.conversations import load_conversations
from rsatalker_jax.data.pipeline import MotionClip
from rsatalker_jax.errors import InputError
from rsatalker_jax.evaluation import robustness, tables
from rsatalker_jax.evaluation.cases import Case
from rsatalker_jax.evaluation.lip_metrics import speaking_frames
from rsatalker_jax.head import LipOpening, make_lip_opening
from rsatalker_jax.runs import TrainedRun, load_run
from rsatalker_jax.social.relation import UNKNOWN
from rsatalker_jax.speech import SpeechFeatures
from rsatalker_jax.talker import make_encoder
from rsatalker_jax.types import SAMPLE_RATE, SAMPLES_PER_FRAME


def score_robustness(workdir: str, split: str = "test", *, count: int = 0, recordings: Sequence[str] = ()) -> str:
  """Scores a run's lips under each of `robustness.CONDITIONS` and writes robustness.json, .md and .tex where eval.py writes.

  Args:
    workdir: the run.
    split: of the conversations, both of whose voices are degraded.
    count: so many conversations' directions alone; 0: all.
    recordings: further voices, wav, of people of whom no motion is known. Their partner is silent and at rest.

  Returns:
    The Markdown.

  Raises:
    InputError: a run without generator, without conversations in the split, or whose head has no mouth; a recording that cannot
      be read.
  """
  voices = []
  for path in recordings:
    wav, notes = read_wav(path)
    voices.append((path, wav))
    for note in notes:
      print(note)
  run = load_run(workdir, image_methods=True)
  if "generator" not in run.params:
    raise InputError(workdir, "motion", f"only {run.stages}", "a finished motion stage")
  opening = make_lip_opening(run.talker.head)
  if opening is None:
    raise InputError(run.config.head.path, "", "a head without a mouth", "one whose lips can be measured")
  source = load_conversations(run.config.data, split)
  run.check_basis(source.basis, run.data_path("conversations"))
  encode = make_encoder(run.config.speech, None)  # What is degraded here is heard once.

  def hear_conversations(change):
    cases = make_cases(run, source, split, lambda wav, frames: encode(change(wav), frames))
    return map(cases.__getitem__, range(min(count or len(cases), len(cases))))

  generate = lambda case: run.generate(case.clip)
  measured = LipOpening(opening)
  clips = min(count or len(source), len(source))
  results = {"conversations": robustness.score_conditions(generate, hear_conversations, measured)}
  sections = [(f"Conversations: {clips} of {source.summary()}; both voices changed", results["conversations"])]
  if voices:
    hear_recordings = lambda change: (_recorded(run, encode, path, wav, change) for path, wav in voices)
    results["recordings"] = robustness.score_conditions(generate, hear_recordings, measured)
    seconds = sum(len(wav) for _, wav in voices) / SAMPLE_RATE
    sections.append((f"Recordings: {len(voices)}, {seconds:.0f} s; a partner who is silent and at rest", results["recordings"]))

  shown = [(title, robustness.robustness_table(scores)) for title, scores in sections]
  head = f"# Lips under other conditions of sound\n\nRun {workdir} ({run.stages}), split {split}.\n"
  markdown = "\n".join([head, *(f"## {title}\n\n{table.markdown()}" for title, table in shown)])
  facts = {"metrics_version": tables.METRICS_VERSION, "run": workdir, "stages": run.stages, "split": split, "clips": clips}
  folder = pathlib.Path(workdir) / "evaluation"
  folder = folder if split == "test" else folder / split
  latex = "\n".join(table.latex() for _, table in shown)
  tables.write_results(folder, facts | {"recorded": list(recordings)} | results, markdown, latex, name="robustness")
  return markdown


def _recorded(run: TrainedRun, encode: SpeechFeatures, path: str, wav: np.ndarray, change) -> Case:
  """A voice alone, to which something was done, as a clip: whose partner says nothing and shows the mean of the training motion."""
  frames = len(wav) // SAMPLES_PER_FRAME
  still = np.tile(run.buffers["generator"]["motion_mean"], (frames, 1)).astype(np.float32)
  clip = MotionClip(
      name=str(path),
      speech_a=encode(np.zeros_like(wav), frames),
      motion_a=still,
      speech_b=encode(change(wav), frames),
      motion_b=None,
      relation=np.full(2, UNKNOWN, np.int32),
      basis=str(run.basis),
  )
  return Case(clip, speaking_frames(wav, frames), np.zeros(frames, bool))
