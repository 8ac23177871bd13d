"""What `python -m rsatalker_jax live` does: a conversation with a generated face, in a browser on this machine."""

import pathlib
import secrets
from collections.abc import Sequence

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

  Raises:
    InputError: for every mistake in the inputs.
  """
  parse_relation(relation, source="--relation")
  recordings = {}
  for path in speech_b:
    wav, notes = read_wav(path)
    for note in notes:
      print(note)
    if pathlib.Path(path).name in recordings:
      raise InputError("--speech_b", "", f"two files with the name {pathlib.Path(path).name}", "names that differ")
    recordings[pathlib.Path(path).name] = wav
  from rsatalker_jax.live import engine, server  # Which needs aiohttp.
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
    print(f"{workdir} ({about['stages']}){heard}; nothing that is said is stored, and nothing of it leaves this machine")
    options = dict(recordings=recordings, say=say, conversations=conversations, relation=relation)
    make_app = lambda origins: server.LiveServer(worker, token, origins, **options).make_app()
    serving.serve(make_app, host="127.0.0.1", port=port, path=f"/{token}/")
  finally:
    worker.stop()
