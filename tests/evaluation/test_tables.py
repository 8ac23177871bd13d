"""Tables say what they were given."""

import json

import pytest

from rsatalker_jax.evaluation import tables


def test_markdown_table():
  text = tables.markdown_table(["FD", "MSE"], {"ours": [1.23456, 0.5], "other": [None, "n/a"]})
  assert text.splitlines() == ["| | FD | MSE |", "|---|---:|---:|", "| ours | 1.235 | 0.5 |", "| other | – | n/a |"]


def test_row_of_another_length_is_refused():
  with pytest.raises(ValueError, match="'ours' has 1 values for 2"):
    tables.markdown_table(["a", "b"], {"ours": [1.0]})


def test_results_are_written_whole(tmp_path):
  tables.write_results(tmp_path / "new", {"x": 1.5}, "| |\n")
  assert json.loads((tmp_path / "new" / "results.json").read_text()) == {"x": 1.5}
  assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["results.json", "results.md"]
