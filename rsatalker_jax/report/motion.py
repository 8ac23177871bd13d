"""Motion against truth over time, with turns shaded."""

import html
from collections.abc import Sequence

import numpy as np

from rsatalker_jax.evaluation.turn_taking import stretches
from rsatalker_jax.report.channels import Channels
from rsatalker_jax.report.charts import Line, Panel, Shade, draw_figure, draw_legend
from rsatalker_jax.report.material import Cast, TestSet
from rsatalker_jax.report.turns import Moment, Turns
from rsatalker_jax.types import FPS

_MOST_FRAMES = 40 * FPS  # Of a conversation whose motion is drawn.

# Whom relations are called after, as in the paper's figures.
PEOPLE = {
    "blood,equal": "siblings",
    "blood,unequal": "mother and son",
    "non_blood,equal": "a couple",
    "non_blood,unequal": "superior and subordinate",
}


def name_relation(relation: str) -> str:
  """A relation in words."""
  words = relation.replace("_", "-").replace(",", ", ")
  return f"{PEOPLE[relation]} ({words})" if relation in PEOPLE else f"relation {words}"


class MotionCharts:
  """Draws curves of true and generated motion.

  Args:
    cast: whose motion: ours, and that of `cast.rival`.
    test: the conversations.
  """

  def __init__(self, cast: Cast, test: TestSet):
    self._cast, self._test = cast, test
    self._channels = Channels(cast.run.talker.head)

  def draw(self, turns: Turns, start: int, stop: int, *, origin: float, width: int, height: int, few: bool = False) -> str:
    """A chart of frames `start` to `stop` of a conversation.

    Args:
      turns: of the conversation.
      start, stop: frames.
      origin: the time in seconds at which the axis has `start`.
      width, height: of the drawing, and of a panel.
      few: the first two channels and how far the head nods, alone.
    """
    conversation = self._test.conversation(turns.name)
    relation = self._test.relation(conversation)
    methods = [(method, style) for method, style in ((self._cast.ours, "ours"), (self._cast.rival, "other")) if method]
    motions = [("truth", "truth", conversation.motion_b)]
    motions += [(method.title, style, method.motion(conversation, relation)) for method, style in methods]
    # The truth is drawn last, over the others.
    curves = [(title, style, self._channels(motion)) for title, style, motion in reversed(motions)]
    seconds = origin + np.arange(stop - start) / FPS
    labels = list(curves[0][2])
    if few:
      labels = [*labels[:2], *(label for label in labels[2:] if label.startswith("head down"))]
    panels = [
        Panel(label, [Line(title, style, seconds, channels[label][start:stop]) for title, style, channels in curves])
        for label in labels
    ]
    spans = lambda mask: [(origin + first / FPS, origin + last / FPS) for first, last in stretches(mask[start:stop])]
    return draw_figure(
        panels,
        title=f"Motion of {turns.name}, truth and generated, with the turns of A and B",
        x_label="time (s)",
        x_range=(origin, origin + (stop - start) / FPS),
        shades=[Shade("A", "a", spans(turns.a)), Shade("B", "b", spans(turns.b))],
        width=width,
        height=height,
    )

  def legend(self) -> str:
    """What lines and shades mean."""
    entries = [("truth", "line-truth")]
    if self._cast.ours:
      entries.append((self._cast.ours.title, "line-ours"))
    if self._cast.rival:
      entries.append((self._cast.rival.title, "line-other"))
    return draw_legend([*entries, ("A speaks", "lane-a"), ("B speaks", "lane-b")])


def draw_conversations(charts: MotionCharts, moments: Sequence[Moment]) -> str:
  """For each relation one conversation from its beginning, the first of the moments that have it: 40 s at most."""
  chosen: dict[str, Turns] = {}
  for moment in moments:
    chosen.setdefault(moment.turns.relation, moment.turns)
  parts = [
      ("<p>B's motion in unseen conversations, one of each relation. What B hears and sees is A's voice, A's motion and B's "
       "own voice; where B speaks, the voice says what the lips do, and much of the rest is chance.</p>"),
      charts.legend(),
  ]
  for relation, turns in chosen.items():
    stop = min(len(turns.b), _MOST_FRAMES)
    chart = charts.draw(turns, 0, stop, origin=0.0, width=1000, height=72)
    parts.append(
        f"<h3>{html.escape(name_relation(relation).capitalize())}</h3>"
        f'<div class="scroll long" role="region" aria-label="Motion of {html.escape(turns.name)}" tabindex="0">{chart}</div>'
        f'<p class="note">{html.escape(turns.name)}</p>'
    )
  return "".join(parts)
