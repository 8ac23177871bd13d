"""What `report` does: a run and its ablations as one page to look at."""

import html
import pathlib
from collections.abc import Mapping
from typing import Any

import tqdm

from rsatalker_jax.commands.outputs import check_output
from rsatalker_jax.errors import InputError
from rsatalker_jax.files import read_text
from rsatalker_jax.report import losses, page, reels, results, scenes, turns
from rsatalker_jax.report.material import Cast, TestSet, load_ablations
from rsatalker_jax.report.motion import MotionCharts, draw_conversations
from rsatalker_jax.runs import TrainedRun, load_run
from rsatalker_jax.types import FPS, STAGES

_CLIP, _EXCHANGE = 4 * FPS, 8 * FPS  # Frames of a clip, and of the one that the page begins with.


def write_report(workdir: str, out: str | None = None, *, person: str | None = None) -> pathlib.Path:
  """Writes a page of all that there is of a run: results, loss curves, motion, videos with sound and sheets of frames.

  Videos and sheets are kept in <workdir>/report, so that a second call draws only what has changed.

  Args:
    workdir: the run; its ablations are the runs in <workdir>/ablations/<variant>/seed_<n>.
    out: the page; None is <workdir>/report.html.
    person: who is shown, where the run has several people; None: the first.

  Returns:
    Where the page is. What it lacks, and why, is said at its end and printed.

  Raises:
    InputError: there is no run, a file of it is damaged, results are by other definitions of metrics than the run's, or the
      page cannot be written.
  """
  path = pathlib.Path(workdir) / "report.html" if out is None else pathlib.Path(out)
  if path.suffix != ".html":
    raise InputError("--out", "", path, "a name that ends in .html")
  check_output("--out", path)
  missing: list[str] = []
  run = load_run(workdir, person=person)
  ablations = load_ablations(workdir, person, missing)
  titles = {workdir: run.config.evaluation.title}
  titles |= {str(folder): f"{x.title} ({x.variant}, {folder.name})" for x in ablations for folder in x.seeds}
  found = {folder: entry for folder in titles if (entry := results.read_results(folder)) is not None}
  tables = _show_results(run, found, titles, workdir, missing)
  curves = _show_losses(workdir, found.get(workdir, {}).get("usage", {}), missing)

  cast, test = Cast.choose(run, ablations), TestSet.read(run, missing)
  moments = turns.choose_moments(test.turns, _CLIP)
  exchange = turns.choose_exchange(test.turns, _EXCHANGE) or next(iter(moments), None)
  plan = reels.Plan(cast, test, exchange, moments, missing)
  progress = lambda pending: tqdm.tqdm(pending, desc="videos and sheets", unit="file", disable=not pending)
  files = dict(zip(plan.pictures, scenes.draw_pictures(plan.pictures, pathlib.Path(workdir) / "report", progress)))
  charts = MotionCharts(cast, test)
  show = lambda reel: reels.show_reel(reel, files[reel.picture], cast, charts)
  legend = charts.legend() if moments else ""
  title = run.config.evaluation.title
  page.write_page(
      path,
      title=title,
      subtitle=" · ".join(filter(None, [workdir, run.stages, test.source.summary() if test.source else ""])),
      hero=show(plan.hero) + legend if plan.hero else "",
      sections=[
          page.Section("results", "Results", tables),
          page.Section("losses", "Loss curves", curves),
          page.Section("motion", "Motion against truth", draw_conversations(charts, moments) if moments else ""),
          page.Section("videos", "Videos", reels.show_reels([(reel, show(reel)) for reel in plan.reels], legend)),
          page.Section("sheets", "Truth and error", "".join(reels.show_sheet(sheet, files[sheet]) for sheet in plan.sheets)),
          page.Section("missing", "What is missing", "".join(f"<p>{html.escape(line)}</p>" for line in missing)),
      ],
  )
  for line in missing:
    print(f"missing: {line}")
  print(f"wrote {path}: {len(files)} videos and sheets, {path.stat().st_size / 2**20:.1f} MiB")
  return path


def _show_results(
    run: TrainedRun, found: Mapping[str, Mapping[str, Any]], titles: Mapping[str, str], workdir: str, missing: list[str]
) -> str:
  """Checks, the run's tables, Tables 4 and 5 and the ablations' own tables, of what has been evaluated.

  Args:
    run: in `workdir`.
    found: results by folder, the run's first.
    titles: of all folders.
    missing: gets a line for what is not there.
  """
  for folder in (folder for folder in titles if folder not in found):
    missing.append(f"no tables of {folder}: `evaluate --workdir={folder}` writes them")
  own = found.get(workdir)
  if own and own["stages"] != run.stages:
    missing.append(f"newer tables: those shown are of {own['stages']}, and the run has {run.stages}; evaluate it again")
  parts = [results.draw_checks({titles[folder]: entry.get("checks", ()) for folder, entry in found.items()})] if found else []
  if own:
    parts.append(results.draw_figures(own))
    parts.append(f'<div class="results">{results.to_html(own["markdown"])}</div>')
  others = [folder for folder in found if folder != workdir]
  together = pathlib.Path(workdir) / "ablations" / "results.md"
  if together.exists():
    text = results.to_html(read_text(together, "the tables of the ablations"))
    parts.append(f'<h3>Ablations</h3><div class="results">{text}</div>')
  elif len(titles) > 1:
    missing.append(f"Tables 4 and 5: there is no {together}")
  else:
    missing.append(f"no ablations: there are none in {together.parent}")
  if others and not together.exists():
    parts.append("<h3>Ablations</h3>" + results.draw_comparison({titles[folder]: entry for folder, entry in found.items()}))
  for folder in others:
    text = results.to_html(found[folder]["markdown"])
    parts.append(f'<details><summary>{html.escape(titles[folder])}</summary><div class="results">{text}</div></details>')
  return "".join(parts)


def _show_losses(workdir: str, usage: Mapping[str, Any], missing: list[str]) -> str:
  """Curves of each stage that has any, with what the stage took."""
  parts = []
  for stage in STAGES:
    path = pathlib.Path(workdir) / stage / "metrics.jsonl"
    if not path.exists():
      missing.append(f"no loss curves of the {stage} stage: there is no {path}")
      continue
    took = losses.describe_usage(usage.get(stage, {}))
    parts.append(f"<h3>{stage.capitalize()} stage</h3>" + (f'<p class="note">{html.escape(took)}</p>' if took else ""))
    parts.append(losses.draw_losses(losses.read_metrics(path), stage))
  if parts:
    parts.insert(0, losses.legend())
  return "".join(parts)
