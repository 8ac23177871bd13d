"""Which encoders have written into a feature cache, so that nobody has to read their weights to find their files.

Beside the features lies encoders.json, a list of

    {"name": "facebook/wav2vec2-large-960h-lv60-self in float32", "key": "3fa9…", "stamp": "config.json 1606 1717…, …"}

A stamp is the names, sizes and times of change of a checkpoint's files: where they are the same, so is the key. It only
saves work: if the file is damaged or missing, keys are made from the contents again.
"""

import dataclasses
import json
import os
import pathlib

from rsatalker_jax.errors import InputError
from rsatalker_jax.files import whole_file

_FILE = "encoders.json"


@dataclasses.dataclass(frozen=True)
class EncoderId:
  """What tells an encoder from others.

  Attributes:
    name: for people: where it is from and its dtype.
    key: digest of its settings and weights.
    stamp: of the files that the key was made of; empty where there are none, or they have only just been written.
  """

  name: str
  key: str
  stamp: str = ""

  def __str__(self) -> str:
    return f"{self.key[:8]} ({self.name})"


class EncoderIds:
  """The encoders of one cache.

  Args:
    cache_dir: the cache; None, or a folder that is not there, has none.
  """

  def __init__(self, cache_dir: str | os.PathLike | None):
    self._path = None if cache_dir is None else pathlib.Path(cache_dir) / _FILE

  def find(self, name: str, stamp: str) -> EncoderId | None:
    """The encoder of this name whose files had this stamp."""
    return next((encoder for encoder in self.all() if (encoder.name, encoder.stamp) == (name, stamp)), None)

  def find_by_name(self, name: str) -> EncoderId | None:
    """The encoder of this name, for a machine that does not have its files.

    Raises:
      InputError: there are several, from before and after its files changed.
    """
    keys = {encoder.key for encoder in self.all() if encoder.name == name}
    if len(keys) > 1:
      raise InputError(self._path, name, f"{len(keys)} encoders", "one, or the checkpoint on this machine to tell which")
    return EncoderId(name, keys.pop()) if keys else None

  def all(self) -> list[EncoderId]:
    """All that was noted, in that order."""
    try:
      return [EncoderId(**entry) for entry in json.loads(self._path.read_text(encoding="utf-8"))] if self._path else []
    except (OSError, ValueError, TypeError):
      return []

  def add(self, encoder: EncoderId) -> None:
    """Notes an encoder. A cache that this process must not write stays without."""
    noted = self.all()
    if self._path is None or encoder in noted:
      return
    entries = [dataclasses.asdict(entry) for entry in (*noted, encoder)]
    try:
      with whole_file(self._path) as file:
        file.write((json.dumps(entries, indent=2, ensure_ascii=False) + "\n").encode())
    except OSError:
      return
