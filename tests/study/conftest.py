"""A study of tiny videos, its database, and a server of it."""

import json

import pytest

from rsatalker_jax.study import criteria, store
from rsatalker_jax.study.materials import Materials, read_materials
from study.world import CONVERSATIONS, METHODS, running, write_tiny_video


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
  """For reading only."""
  folder = tmp_path_factory.mktemp("videos")
  for conversation in CONVERSATIONS:
    for method in METHODS:
      write_tiny_video(folder / conversation / f"{method}.mp4", seed=len(list(folder.rglob("*.mp4"))))
  told = {"title": "At <b>breakfast</b>", "relation": "A is B's mother.", "role": "B listens."}
  (folder / "study.json").write_text(json.dumps({"title": "Faces", "contact": "Ann", "conversations": {"breakfast": told}}))
  return folder


@pytest.fixture(scope="session")
def materials(videos) -> Materials:
  return read_materials(videos)


@pytest.fixture
def answers_store(tmp_path, materials):
  """The database of a study with three participants."""
  opened = store.open_store(tmp_path / "study", materials)
  opened.add_participants(3)
  yield opened
  opened.close()


@pytest.fixture
def site(materials, answers_store, tmp_path):
  with running(materials, answers_store, tmp_path / "study") as started:
    yield started


@pytest.fixture
def scores():
  return {key: 10 * place for place, key in enumerate(criteria.KEYS)}
