"""What `python -m rsatalker_jax label` does: a page on which one person labels relations, or how far several agree."""

import os
import pathlib

from rsatalker_jax.commands.outputs import check_output
from rsatalker_jax.data.dualtalk import find_clips
from rsatalker_jax.data.relations import describe_disagreements, merge_labels, read_labels
from rsatalker_jax.errors import InputError
from rsatalker_jax.evaluation.agreement import agreement_table, measure_agreement
from rsatalker_jax.labelling.table import LabelTable


def label_conversations(
    *,
    conversations: str,
    annotator: str | None = None,
    videos: str | None = None,
    relations: str | None = None,
    agreement: bool = False,
    port: int = 8710,
) -> None:
  """Serves the page of one annotator to this machine alone, until it is told to end; or prints how far annotators agree.

  Args:
    conversations: folder in DualTalk's layout, or of its files without folders of splits.
    annotator: whose labels are made; needed for the page.
    videos: folder with <conversation>.mp4, or <conversation>_speaker1.mp4 and _speaker2.mp4; faces are drawn where there is none.
    relations: the table; `<conversations>/relations.csv` by default.
    agreement: print Cohen's kappa, and on what annotators contradict each other.
    port: what to listen on; 0: a free one.

  Raises:
    InputError: for every mistake in the inputs.
  """
  table = pathlib.Path(relations if relations is not None else os.path.join(conversations, "relations.csv"))
  clips = list({clip.name: clip for clip in find_clips(conversations)}.values())
  names = {clip.name for clip in clips}
  if agreement:
    if annotator is not None or videos is not None:
      raise InputError("command line", "", "--agreement with --annotator or --videos", "one of them at a time")
    labels = read_labels(table, names)
    merged, disagreements = merge_labels(labels)
    found = measure_agreement(labels)
    print(f"{len(labels)} labels of {len(merged)} of {len(clips)} conversations\n")
    print(agreement_table(found) if found else "no two annotators have labelled the same conversation")
    if disagreements:
      print(f"\n{describe_disagreements(disagreements)}:")
      for one in disagreements:
        print(f"  {one.conversation}: {one.axis}: {one.yes} true, {one.no} false")
    return
  if annotator is None:
    raise InputError("--annotator", "", "none", "the name under which labels are kept")
  check_output("--relations", table)
  from rsatalker_jax.labelling import server  # Which needs aiohttp.
  from rsatalker_jax.web import serving

  shown = server.find_videos(videos, clips) if videos is not None else {}
  labels = LabelTable(table, annotator, names)
  print(f"{len(clips)} conversations, {len(labels.labels())} labelled by {annotator}; labels go to {table}")
  serving.serve(lambda origins: server.LabelServer(clips, labels, shown, origins).make_app(), host="127.0.0.1", port=port)
