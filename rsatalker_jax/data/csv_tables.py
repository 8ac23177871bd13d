"""Small tables that people write, in an editor or a spreadsheet: csv with a header, commas between columns."""

import csv
import dataclasses
import io
import os
from collections.abc import Iterator, Mapping, Sequence

from rsatalker_jax.errors import InputError
from rsatalker_jax.files import read_text, whole_file


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of a table.

  Attributes:
    place: file and line, for messages.
    values: by column, without spaces around them; "" where an optional column is not there.
  """

  place: str
  values: Mapping[str, str]

  def __getitem__(self, column: str) -> str:
    return self.values[column]


def read_table(
    path: str | os.PathLike, required: Sequence[str], optional: Sequence[str] = (), *, hints: Mapping[str, str] = {}
) -> Iterator[Row]:
  """Reads a table whose columns may come in any order. Lines without any value, as spreadsheets leave them, are no rows.

  Args:
    path: the csv, in UTF-8 or UTF-16.
    required, optional: the columns. There may be no others: what they say would be lost.
    hints: what to say of a column that is there and should not be, by its name.

  Raises:
    InputError: names file and line of missing, unknown or repeated columns, of columns that are separated by something
      else, or of a line with more values than columns, as decimal commas make them.
  """
  header = ",".join(required) + "".join(f"[,{name}]" for name in optional)
  expected = f"a csv with the columns {header}"
  columns: list[str] = []
  for place, values in read_lines(path, read_text(path, expected), expected):
    if not columns:
      columns = _check_header(place, values, required, optional, header, hints)
      continue
    if len(values) > len(columns):
      found = f"{len(values)} values, {','.join(values)}"
      raise InputError(place, "", found, f"{len(columns)} of {','.join(columns)}: decimals with a point, text with commas in quotes")
    if len(values) < len(columns) and any(name in required for name in columns[len(values) :]):
      raise InputError(place, "", f"{len(values)} values, {','.join(values)}", f"{len(columns)} of {','.join(columns)}")
    yield Row(place, {**dict.fromkeys((*required, *optional), ""), **dict(zip(columns, values))})


def read_lines(path: str | os.PathLike, text: str, expected: str, separator: str = ",") -> Iterator[tuple[str, list[str]]]:
  """File and line, and values without spaces around them, of each line of a csv that has any; the first is the header.

  Raises:
    InputError: it is no csv, or there is no line.
  """
  rows, empty = csv.reader(io.StringIO(text, newline=""), delimiter=separator), True
  try:
    for values in rows:
      values = [value.strip() for value in values]
      if any(values):
        empty = False
        yield f"{path}:{rows.line_num}", values
  except csv.Error as error:  # A field of more than 131,072 letters: a quotation mark that nothing closes.
    raise InputError(f"{path}:{rows.line_num}", "", error, "a line of a csv") from None
  if empty:
    raise InputError(path, "", "nothing", expected)


def _check_header(
    place: str, columns: list[str], required: Sequence[str], optional: Sequence[str], header: str, hints: Mapping[str, str]
) -> list[str]:
  found = ",".join(columns)
  for separator, name in ((";", "semicolons"), ("\t", "tabs")):
    if len(columns) == 1 and separator in found:
      raise InputError(place, "columns", f"{found}, separated by {name}", f"{header}, separated by commas")
  for column in columns:
    if column in hints and column not in required:
      raise InputError(place, "columns", found, f"{header}: {hints[column]}")
  if not set(required) <= set(columns) <= {*required, *optional}:
    raise InputError(place, "columns", found, header)
  if len(set(columns)) < len(columns):
    raise InputError(place, "columns", f"{found}, one of them twice", header)
  return columns


def write_table(path: str | os.PathLike, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
  """Writes a table that `read_table` reads, whole or not at all."""
  text = io.StringIO(newline="")
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(columns)
  writer.writerows(rows)
  with whole_file(path) as file:
    file.write(text.getvalue().encode("utf-8"))
