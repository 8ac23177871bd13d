"""The page itself: sections put into page.html, which asks nothing of any network, and files put into the page."""

import base64
import dataclasses
import hashlib
import html
import os
import pathlib
import re
from collections.abc import Sequence

from rsatalker_jax.files import whole_file

_PAGE = pathlib.Path(__file__).with_suffix(".html")


@dataclasses.dataclass(frozen=True)
class Section:
  """A part of the page.

  Attributes:
    name: of its place, letters alone.
    title: its heading, and its line in the table of contents.
    content: HTML.
  """

  name: str
  title: str
  content: str


def write_page(path: str | os.PathLike, *, title: str, subtitle: str, hero: str, sections: Sequence[Section]) -> None:
  """Writes the page, whole or not at all.

  Args:
    path: the file.
    title, subtitle: plain text.
    hero: HTML above the table of contents.
    sections: those without content are left out.
  """
  sections = [section for section in sections if section.content]
  contents = "".join(f'<li><a href="#{part.name}">{html.escape(part.title)}</a></li>' for part in sections)
  body = "".join(
      f'<section id="{part.name}" aria-labelledby="{part.name}-title" tabindex="-1">'
      f'<h2 id="{part.name}-title">{html.escape(part.title)}</h2>{part.content}</section>'
      for part in sections
  )
  template = _PAGE.read_text(encoding="utf-8")
  (script,) = re.findall("<script>(.*?)</script>", template, re.DOTALL)
  # The page's own script alone may run, whatever else comes into the page.
  checksum = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  filled = {
      "TITLE": html.escape(title),
      "SUBTITLE": html.escape(subtitle),
      "SCRIPTHASH": f"sha256-{checksum}",
      "HERO": hero,
      "CONTENTS": contents,
      "SECTIONS": body,
  }
  page = re.sub("@@([A-Z]+)@@", lambda mark: filled[mark[1]], template)
  with whole_file(path) as file:
    file.write(page.encode())


def data_uri(kind: str, content: bytes) -> str:
  """Bytes as an address that holds them."""
  return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def video_figure(
    content: bytes,
    poster: bytes,
    *,
    seconds: float,
    size: tuple[int, int],
    columns: Sequence[str],
    label: str,
    caption: str,
    below: str = "",
) -> str:
  """A video with a caption above each of its columns; it is opened when somebody plays it.

  Args:
    content: an mp4.
    poster: a JPEG that stands there until then.
    seconds: how long it is.
    size: width and height in pixels.
    columns: what stands above each column, of equal widths.
    label: what a screen reader says.
    caption: HTML below it.
    below: HTML, a chart whose line goes with the video.
  """
  heads = "".join(f"<span>{html.escape(column)}</span>" for column in columns)
  label = html.escape(label)
  return (
      f'<figure class="reel" style="--columns:{len(columns)}">'
      f'<div class="scroll" role="region" aria-label="{label}" tabindex="0"><div class="strip">'
      f'<div class="heads">{heads}</div>'
      f'<video controls playsinline preload="none" width="{size[0]}" height="{size[1]}" aria-label="{label}" '
      f'data-seconds="{seconds:g}" poster="{data_uri("image/jpeg", poster)}" src="{data_uri("video/mp4", content)}"></video></div></div>'
      f"<figcaption>{caption}</figcaption>{below}</figure>"
  )


def sheet_figure(rows: Sequence[tuple[str, bytes]], *, columns: Sequence[str], caption: str) -> str:
  """Rows of pictures as JPEG, each with its title, and what stands above each of their columns."""
  heads = "".join(f"<span>{html.escape(column)}</span>" for column in columns)
  lines = "".join(
      f'<div class="row"><b>{html.escape(title)}</b>'
      f'<img loading="lazy" alt="{html.escape(title)}" src="{data_uri("image/jpeg", picture)}"></div>'
      for title, picture in rows
  )
  return (
      f'<figure class="sheet" style="--columns:{len(columns)}">'
      '<div class="scroll" role="region" aria-label="Sheet of frames" tabindex="0"><div class="strip">'
      f'<div class="heads">{heads}</div>{lines}</div></div><figcaption>{caption}</figcaption></figure>'
  )
