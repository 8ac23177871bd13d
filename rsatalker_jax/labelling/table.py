"""One annotator's labels in a table that several may be writing at the same time."""

import contextlib
import fcntl
import pathlib
from collections.abc import Iterator

from rsatalker_jax.data.relations import RelationLabel, read_labels, write_relations
from rsatalker_jax.errors import InputError

_LONGEST_NAME = 100


class LabelTable:
  """A relations table, as one annotator sees and changes it.

  A label is on the disk, in a whole table, when `record` returns. Programs of other annotators that work on the same table wait
  for each other.

  Args:
    path: the table; it and its folder are made with the first label.
    annotator: whose labels these are.
    conversations: names that may be labelled.

  Raises:
    InputError: the table is damaged or names conversations that do not exist; the annotator's name is none.
  """

  def __init__(self, path: pathlib.Path, annotator: str, conversations: set[str]):
    if not annotator.strip() or annotator != annotator.strip() or not annotator.isprintable() or len(annotator) > _LONGEST_NAME:
      raise InputError("--annotator", "", repr(annotator), f"a name of 1 to {_LONGEST_NAME} letters")
    if annotator[0] in "=+-@":
      raise InputError("--annotator", "", repr(annotator), "a name that no spreadsheet takes for a formula")
    self.path, self.annotator, self._conversations = path, annotator, conversations
    self.labels()

  def labels(self) -> dict[str, RelationLabel]:
    """The annotator's, by conversation."""
    return {label.conversation: label for label in self._read() if label.annotator == self.annotator}

  def _read(self) -> list[RelationLabel]:
    return read_labels(self.path, self._conversations) if self.path.exists() else []

  def record(self, label: RelationLabel) -> None:
    """Stores a label, in the place of the annotator's earlier one of the conversation if there is one.

    Raises:
      InputError: somebody has damaged the table meanwhile, or it cannot be written.
    """
    if label.annotator != self.annotator or label.conversation not in self._conversations:
      raise ValueError(f"a label of {label.annotator} of {label.conversation}")
    with self._locked():
      labels = self._read()
      keys = [(other.conversation, other.annotator) for other in labels]
      if (label.conversation, label.annotator) in keys:
        labels[keys.index((label.conversation, label.annotator))] = label
      else:
        labels.append(label)
      write_relations(self.path, labels)

  @contextlib.contextmanager
  def _locked(self) -> Iterator[None]:
    lock = self.path.with_name(f".{self.path.name}.lock")
    try:
      lock.parent.mkdir(parents=True, exist_ok=True)
      file = lock.open("w")
    except OSError as error:
      raise InputError(lock, "", error.strerror or error, "a file that can be written") from None
    with file:
      with contextlib.suppress(OSError):  # A file system without locks: the last who writes wins.
        fcntl.flock(file, fcntl.LOCK_EX)
      yield
