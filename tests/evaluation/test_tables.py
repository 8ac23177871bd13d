"""Tables say what they were given."""

import contextlib
import json

import numpy as np
import pytest

from rsatalker_jax.errors import InputError
from rsatalker_jax.evaluation import tables


def test_markdown_table():
  text = tables.markdown_table(["FD", "MSE"], {"ours": [1.23456, 0.5], "other": [None, "n/a"]})
  assert text.splitlines() == ["| | FD | MSE |", "|---|---:|---:|", "| ours | 1.235 | 0.5 |", "| other | – | n/a |"]


def test_row_of_another_length_is_refused():
  with pytest.raises(ValueError, match="'ours' has 1 values for 2"):
    tables.markdown_table(["a", "b"], {"ours": [1.0]})


def test_results_are_written_together(tmp_path, monkeypatch):
  folder = tmp_path / "new"
  tables.write_results(folder, {"x": np.float32(1.5), "y": [np.inf, {"z": np.int64(2)}]}, "| |\n", "a\n", **{"frames.png": b"png"})
  assert json.loads((folder / "results.json").read_text()) == {"x": 1.5, "y": [None, {"z": 2}]}
  assert sorted(p.name for p in folder.iterdir()) == ["frames.png", "results.json", "results.md", "results.tex"]

  # A file that cannot be written leaves all as they were.
  whole_file = tables.whole_file

  @contextlib.contextmanager
  def full_disk(path):
    with whole_file(path) as file:
      if path.name == "frames.png":
        raise OSError(28, "No space left on device")
      yield file

  monkeypatch.setattr(tables, "whole_file", full_disk)
  with pytest.raises(InputError, match="No space left"):
    tables.write_results(folder, {}, "", "", **{"frames.png": b""})
  assert json.loads((folder / "results.json").read_text())["x"] == 1.5 and (folder / "results.md").read_text() == "| |\n"
  assert len(list(folder.iterdir())) == 4


def make_table():
  columns = [tables.Column("EXP", "FD", "↓"), tables.Column("JAW ×10³", "FD", "↓"), tables.Column("r", better="↑"), tables.Column("n")]
  rows = {
      "true motion": [0.0, 0.0, 1.0, 3],
      "ours_1": [[1.0, 2.0], 5.0, 0.5, 3],
      "other & co": [1.6, None, 0.9, 4],
      "third": [1.5, 5.0, [], "text"],
  }
  return tables.Table(columns, rows, unranked=["true motion"], below={"paper": [0.1, 0.1, 2.0, None]}, rule="published, 100 %")


def test_best_is_bold_among_the_rows_that_are_compared():
  """Lowest or highest mean, ties all; neither the truth, nor what stands below the rule, nor a column without an arrow."""
  assert make_table().markdown().splitlines() == [
      "| | FD EXP ↓ | FD JAW ×10³ ↓ | r ↑ | n |",
      "|---|---:|---:|---:|---:|",
      "| true motion | 0 | 0 | 1 | 3 |",
      "| ours_1 | **1.5 ± 0.5** | **5** | 0.5 | 3 |",
      "| other & co | 1.6 | – | **0.9** | 4 |",
      "| third | **1.5** | **5** | – | text |",
      "| *published, 100 %* | | | | |",
      "| paper | 0.1 | 0.1 | 2 | – |",
  ]
  alone = tables.Table([tables.Column("r", better="↑")], {"a": [1.0], "b": [None]})
  assert "**" not in alone.markdown()  # Nothing to choose from.


def test_latex_has_groups_rules_and_no_character_that_tex_does_not_know():
  text = make_table().latex()
  assert text.splitlines() == [
      r"\begin{tabular}{lrrrr}",
      r"\toprule",
      r" & \multicolumn{2}{c}{FD $\downarrow$} & \multicolumn{1}{c}{ $\uparrow$} & \multicolumn{1}{c}{} \\",
      r"\cmidrule(lr){2-3}",
      r"Methods & EXP & JAW $\times$10$^3$ & r & n \\",
      r"\midrule",
      r"true motion & 0 & 0 & 1 & 3 \\",
      r"ours\_1 & \textbf{1.5 $\pm$ 0.5} & \textbf{5} & 0.5 & 3 \\",
      r"other \& co & 1.6 & -- & \textbf{0.9} & 4 \\",
      r"third & \textbf{1.5} & \textbf{5} & -- & text \\",
      r"\midrule",
      r"\multicolumn{5}{l}{\emph{published, 100 \%}} \\",
      r"paper & 0.1 & 0.1 & 2 & -- \\",
      r"\bottomrule",
      r"\end{tabular}",
  ]
  assert text.isascii()
  plain = tables.Table([tables.Column("L1", better="↓")], {"a": [1.0]}).latex()
  assert plain.splitlines()[2] == r"Methods & L1 $\downarrow$ \\" and "cmidrule" not in plain
