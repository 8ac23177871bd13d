"""What `python -m rsatalker_jax study` does: the user study of Table 3, from the participants' links to the table."""

import math
import pathlib

from rsatalker_jax.errors import InputError
from rsatalker_jax.study import analysis, design
from rsatalker_jax.study.materials import Materials, read_materials
from rsatalker_jax.study.store import Store, fingerprint, open_store

# Videos of one conversation that differ by more can be told apart by it.
_MOST_APART = 0.2


def run_study(
    *,
    study: str,
    videos: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8700,
    url: str | None = None,
    links: int | None = None,
    results: bool = False,
    power: float | None = None,
    forget: int | None = None,
) -> None:
  """Does one of five things with a study: makes links, writes results, plans, forgets a participant; else serves it.

  Args:
    study: folder of the database and the results.
    videos: folder of the videos; needed to serve and to make links.
    host, port: what to listen on.
    url: the address by which participants reach it, if not by host and port.
    links: makes sure there are as many participants, and prints their links.
    results: writes answers.csv, results.json and results.md to `study`.
    power: the difference in points of totals that is to be found.
    forget: number of the participant whose answers and link are removed.

  Raises:
    InputError: for every mistake in the inputs.
  """
  wanted = {"--links": links is not None, "--results": results, "--power": power is not None, "--forget": forget is not None}
  chosen = [flag for flag, given in wanted.items() if given]
  if len(chosen) > 1:
    raise InputError("command line", "", " and ".join(chosen), "one of them at a time")
  if results or power is not None or forget is not None:
    if videos is not None:
      raise InputError("--videos", "", videos, f"none with {chosen[0]}, which is about the answers in {study}")
    store = open_store(study)
    try:
      _work_on_answers(pathlib.Path(study), store, power, forget)
    finally:
      store.close()
    return
  if videos is None:
    raise InputError("--videos", "", "none", "the folder with <conversation>/<method>.mp4")
  from rsatalker_jax.study import server  # Which needs aiohttp.
  from rsatalker_jax.web import serving

  base, _ = serving.find_origins(host, port, url)
  materials = read_materials(videos)
  for line in _describe(materials):
    print(line)
  store = open_store(study, materials)
  try:
    if links is not None:
      store.add_participants(links)
      for number, token in store.tokens().items():
        print(f"{number:4}  {base}/s/{token}")
      multiple = design.balanced_count(len(materials.methods))
      if links % multiple:
        print(f"note: orders of methods are balanced over multiples of {multiple} participants")
      return
    counts = store.progress()
    if not counts["participants"]:
      raise InputError(study, "", "no participants", "those that --links=NUMBER makes")
    print("{participants} participants, {consented} of them begun; {answers} of {trials} answers".format(**counts))
    server.serve(materials, store, host=host, port=port, url=url)
  finally:
    store.close()


def _work_on_answers(folder: pathlib.Path, store: Store, power: float | None, forget: int | None) -> None:
  if forget is not None:
    print(f"participant {forget} and {store.forget(forget)} answers are removed; --results writes the tables anew")
    return
  answers = store.answers()
  if power is None:
    print(analysis.write_analysis(folder, answers, store.identity, store.title))
    print(f"wrote {folder / 'answers.csv'}, {folder / 'results.json'} and {folder / 'results.md'}")
    return
  if not (math.isfinite(power) and 0 < power <= 100):
    raise InputError("--power", "", power, "a difference of totals in points, above 0 and up to 100")
  multiple = design.balanced_count(len(store.methods))
  rows = analysis.plan(analysis.gather_ratings(answers, store.methods), power, multiple)
  print(f"Participants needed to find a difference of {power:g} points of the total with probability {analysis.POWER:g},")
  print(f"in multiples of {multiple}, after which orders are balanced:\n")
  print(analysis.plan_table(rows))


def _describe(materials: Materials) -> list[str]:
  """What the study is, and what might tell methods apart."""
  methods = ", ".join(materials.methods)
  lines = [f"study {fingerprint(materials.identity())}: {len(materials.conversations)} conversations of {methods}"]
  for name, conversation in materials.conversations.items():
    seconds = [video.seconds for video in conversation.videos.values()]
    if max(seconds) - min(seconds) > _MOST_APART:
      lines.append(f"note: the videos of {name} last from {min(seconds):.1f} to {max(seconds):.1f} s, which tells them apart")
    if not any(video.has_sound for video in conversation.videos.values()):
      lines.append(f"note: the videos of {name} have no sound")
  return lines
