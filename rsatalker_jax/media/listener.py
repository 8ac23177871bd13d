"""A head that listens in a browser, without a server: one HTML file with the causal generator, the head and the Gaussians in it.

The page (listener.html beside this file, and its scripts) asks nothing of any network. In one gzip stream it has the avatar's and
the head's tables (tables.py) and the generator's arrays (`motion.folding`).
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from rsatalker_jax.avatar import Avatar, drop_free_slots
from rsatalker_jax.head import HeadModel
from rsatalker_jax.media.tables import Tables
from rsatalker_jax.media.viewer import SCRIPTS, front_view, read_scripts, write_page

_PAGE = pathlib.Path(__file__).with_suffix(".html")
# Classic scripts in the order in which they are loaded; the generator's need no page.
GENERATOR_SCRIPTS = ("../live/resampler.js", "hearing.js", "layers.js", "generator.js", "conversation.js")


def write_listener(
    path: str | os.PathLike,
    avatar: Avatar,
    head: HeadModel,
    settings: Mapping[str, Any],
    weights: Mapping[str, Float[np.ndarray, "n c"]],
    relations: Sequence[str],
    *,
    offsets: Mapping[str, Float[np.ndarray, "_ _"]] | None = None,
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> int:
  """Writes the page, whole or not at all. Gaussians that no rasterizer draws (opacity below 1/255) are left out.

  Args:
    path: the file; its folder is made if absent, its name is the page's title.
    avatar, head: the person, and the head model it is bound to.
    settings, weights: of the generator; see `motion.folding.fold_generator`, and as settings["speech"] what `Hearing` of
      hearing.js wants.
    relations: their names, in the order of the rows of weights["social"]; the page begins with the first.
    offsets: the network of the offset corrections (Eq. 8), folded for the same relations (`social.folding`); None for none.
    background: the colour behind the head.

  Returns:
    The file's size in bytes.

  Raises:
    InputError: a value that is not finite, or a quaternion of zeros.
  """
  path = pathlib.Path(path)
  avatar = drop_free_slots(avatar)
  tables = Tables(path)
  seen = tables.add_triangles(avatar, head)
  tables.add_gaussians(avatar, seen)
  tables.add_head(avatar, head)
  if offsets is not None:
    tables.add_offsets(avatar, seen, offsets)
  tables.add_arrays(weights)
  header = {
      "background": [float(x) for x in background],
      "view": front_view(head),
      "tables": tables.descriptions,
      "settings": settings,
      "weights": list(weights),
      "relations": relations,
  }
  scripts = read_scripts(*SCRIPTS, "head.js", *GENERATOR_SCRIPTS, "offsets.js", "listener.js")
  return write_page(path, _PAGE, header, tables, SCRIPTS=scripts, WORKLET=read_scripts("sound_worklet.js"))
