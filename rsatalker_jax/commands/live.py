"""What `python -m rsatalker_jax live` does: a conversation with a generated face, in a browser on this machine."""

import functools
import pathlib
import secrets
import shlex
from collections.abc import Mapping, Sequence

import jax

from rsatalker_jax.data.audio import read_wav
from rsatalker_jax.errors import InputError
from rsatalker_jax.social import parse_relation


def hold_conversations(
    *,
    workdir: str,
    avatar_from: str | None = None,
    person: str | None = None,
    relation: str = "blood,equal",
    speech_b: Sequence[str] = (),
    conversations: int = 1,
    port: int = 8720,
    recordings: str | None = None,
) -> None:
  """Serves the page to this machine alone, until it is told to end.

  Args:
    workdir: a run with a causal generator.
    avatar_from: a run on the same head whose avatar is shown; None: the same run.
    person: whose avatar, of several.
    relation: which the page begins with.
    speech_b: recordings of B's voice, wav, which the page can play.
    conversations: how many there may be at once.
    port: what to listen on; 0: a free one.
    recordings: a folder for what the page is told to record; None: nothing can be.

  Raises:
    InputError: for every mistake in the inputs.
  """
  parse_relation(relation, source="--relation")
  voices = {}
  for path in speech_b:
    wav, notes = read_wav(path)
    for note in notes:
      print(note)
    if pathlib.Path(path).name in voices:
      raise InputError("--speech_b", "", f"two files with the name {pathlib.Path(path).name}", "names that differ")
    voices[pathlib.Path(path).name] = wav
  from rsatalker_jax.live import engine, server  # Which needs aiohttp.
  from rsatalker_jax.live.recording import RecordingFolder
  from rsatalker_jax.live.speech_synthesis import load_voice
  from rsatalker_jax.live.worker import Worker
  from rsatalker_jax.web import serving

  say = load_voice()
  if say is None:
    print("note: the face says no typed sentences: that needs `pip install hibari-tts`")
  cache = jax.config.values.get("jax_compilation_cache_dir")
  worker = Worker(engine.load_engine, workdir, avatar_from, person, conversations, cache)
  try:
    token = secrets.token_urlsafe(16)
    about = worker.about
    heard = f", which hears {about['frames_ahead']} frames of its own voice ahead" if about["frames_ahead"] else ""
    stored = "nothing that is said is stored" if recordings is None else f"what is said is stored while a page records, in {recordings}"
    print(f"{workdir} ({about['stages']}){heard}; {stored}, and nothing of it leaves this machine")
    records = None
    if recordings is not None:
      made_by = {"workdir": workdir, "avatar_from": avatar_from, "person": person}
      records = RecordingFolder(recordings, about | made_by, functools.partial(_film_command, made_by))
      for name in records.unfinished:
        print(f"note: {recordings}/{name} is what a program left that was killed while it recorded; delete it")
    options = dict(recordings=voices, say=say, conversations=conversations, relation=relation, records=records)
    make_app = lambda origins: server.LiveServer(worker, token, origins, **options).make_app()
    serving.serve(make_app, host="127.0.0.1", port=port, path=f"/{token}/")
  finally:
    worker.stop()


def _film_command(made_by: Mapping[str, str | None], place: pathlib.Path) -> str:
  """What makes a film of a recording."""
  flags = {"recording": str(place), **made_by, "out": f"{place}.mp4"}
  words = ["python", "generate.py", *(f"--{name}={value}" for name, value in flags.items() if value is not None)]
  return f"; its film: {shlex.join(words)}"
