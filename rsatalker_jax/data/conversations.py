"""The conversations of a config's `data` section: unpacked if they are the embedded ones, found and labelled."""

import pathlib

from ml_collections import ConfigDict

from rsatalker_jax.data.dualtalk import DualTalkSource, load_dualtalk, present_splits
from rsatalker_jax.data.seamless import Selection, load_seamless, present_seamless_splits


def data_path(data: ConfigDict, name: str) -> pathlib.Path:
  """A path of the section, below `embedded_root` if that is set."""
  return pathlib.Path(data.embedded_root) / data[name]


def data_paths(data: ConfigDict, name: str) -> list[pathlib.Path]:
  """The paths of a value of the section that holds several, like `data_path`."""
  return [pathlib.Path(data.embedded_root) / path for path in data[name]]


def unpack_embedded(data: ConfigDict) -> None:
  """Unpacks the embedded conversations where the section says; nothing to do for the user's own data.

  Raises:
    InputError: `embedded_root` holds something else.
  """
  if data.embedded_root:
    from rsatalker_jax.data.demo.unpack import unpack_demo

    unpack_demo(data.embedded_root, performances=data.performances)


def find_splits(data: ConfigDict) -> list[str]:
  """The splits that have conversations, of train, val, test and ood."""
  folder = data_path(data, "conversations")
  return present_seamless_splits(folder, _selection(data)) if data.layout == "seamless" else present_splits(folder)


def load_conversations(data: ConfigDict, split: str) -> DualTalkSource:
  """The conversations of one split, with the labels table and the default relation of the section.

  With a default relation, or read from UniLS-Talk, there need not be a table.

  Raises:
    InputError: see `load_dualtalk` and `load_seamless`.
  """
  folder, default, table = data_path(data, "conversations"), data.get("default_relation"), data_path(data, "relations")
  if (default is not None or data.layout == "seamless") and not table.is_file():
    table = None
  if data.layout == "seamless":
    seamless = data_path(data, "seamless") if data.seamless else None
    return load_seamless(
        folder, split, seamless=seamless, selection=_selection(data), relations=table, default_relation=default
    )
  return load_dualtalk(folder, split, relations=table, default_relation=default)


def _selection(data: ConfigDict) -> Selection:
  return Selection(tuple(data.subset), data.count)
