"""How many live conversations one device holds: a server as `live` starts it, and pages that speak to it in real time.

    python benchmarks/live_conversations.py [--workdir RUN] [--size demo] [--conversations 1 2 4 8 16 32 64] [--seconds 20] [--json FILE]

  RUN    a run with a causal generator; without it the generator has random parameters and the size of
  demo   configs/demo.py:causal, or
  paper  the paper's, hearing the demo's log-mel features

For each number of conversations so many sockets send a frame of noise every 40 ms, each at its own moment, and it is timed from a frame's
departure until its answer is there, after a second of warming up. Server and generator are processes of their own as they are in
`live`; the pages are this process and take from the same cores. A step is timed by the generator's process before the first socket is
opened. Nothing else may run meanwhile. On a GPU it is the same command.

Prints a row for each number, the time of a processor core that each conversation takes, and how many hold p99 < 40 ms.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import sys
import time
from typing import Any

import aiohttp
import jax
import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from configs import demo, rsatalker
from rsatalker_jax.errors import InputError
from rsatalker_jax.files import whole_file
from rsatalker_jax.live.engine import measure_step
from rsatalker_jax.live.protocol import make_frame, parse_answer
from rsatalker_jax.live.server import LiveServer
from rsatalker_jax.live.worker import Worker
from rsatalker_jax.motion import MotionConfig, MotionGenerator, StreamBatch
from rsatalker_jax.runs import load_run
from rsatalker_jax.talker import make_log_mel
from rsatalker_jax.types import FPS, MOTION_DIM, SAMPLES_PER_FRAME
from rsatalker_jax.web import serving

TOKEN = "benchmark"
WARM_UP = 1.0  # Seconds.
FRAME_MS = 1000 / FPS


class BatchEngine:
  """`worker.Engine` of a generator that nobody sees."""

  def __init__(self, workdir: str | None, size: str, conversations: int, cache: str | None):
    if cache is not None:
      jax.config.update("jax_compilation_cache_dir", cache)
    batch = load_run(workdir).stream_batch(conversations) if workdir else make_random(size, conversations)
    self.about = {"frames_ahead": batch.frames_ahead, "step_ms": 1000 * measure_step(batch, 100), "device": jax.devices()[0].device_kind}
    self.about["places"] = len(batch.streams)
    self.avatar, self.neutral, self.partner = b"", np.zeros(MOTION_DIM, np.float32), None
    self.streams, self.push = batch.streams, batch.push

  def relate(self, stream, relation) -> None:
    """All relations are one here: they cost the same."""


def make_random(size: str, conversations: int) -> StreamBatch:
  config = demo.get_config("causal")
  encoder = make_log_mel(config.speech)
  sizes = config.generator if size == "demo" else rsatalker.get_config("ours+causal").generator
  if jax.devices()[0].platform == "cpu":
    sizes.dtype = "float32"  # The paper's is for accelerators.
  generator = MotionGenerator(MotionConfig(**sizes))
  frame = np.zeros((1, encoder.features), np.float32)
  social = np.zeros(sizes.features, np.float32)
  variables = jax.jit(generator.init)(jax.random.key(0), frame, np.zeros((1, MOTION_DIM), np.float32), frame, social)
  return StreamBatch(generator, variables, social, conversations, encoder=encoder, level=config.speech.level)


def serve(connection, *arguments) -> None:
  """The server's process: tells its port, what its engine is and its generator's process, and serves until it hears anything."""
  try:
    worker = Worker(BatchEngine, *arguments)
  except InputError as error:
    connection.send(str(error))
    return

  async def main() -> None:
    listener = serving.open_listener("127.0.0.1", 0)
    port = listener.getsockname()[1]
    origins = serving.find_origins("127.0.0.1", port, None)[1]
    app = LiveServer(worker, TOKEN, origins, conversations=worker.about["places"]).make_app()
    runner = await serving.start_server(app, listener)
    connection.send((port, worker.about, worker.target.pid))
    await asyncio.to_thread(connection.recv)
    await runner.cleanup()

  asyncio.run(main())


def processor_seconds(pid: int) -> float:
  """That a process has had so far."""
  with open(f"/proc/{pid}/stat") as file:
    fields = file.read().rpartition(")")[2].split()
  return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def converse(session: aiohttp.ClientSession, port: int, start: float, seconds: float, times: list[float]) -> str | None:
  """One page's conversation; appends milliseconds of each answer, and returns why it ended early, if it did."""
  rng = np.random.default_rng()
  sounds = np.round(rng.normal(size=(FPS, SAMPLES_PER_FRAME)) * rng.uniform(30, 3000, (FPS, 1))).astype(np.int16)
  origin = f"http://127.0.0.1:{port}"
  async with session.ws_connect(f"{origin}/{TOKEN}/socket", headers={"Origin": origin}) as socket:
    assert (await socket.receive_json())["type"] == "ready"
    sent: dict[int, float] = {}

    async def hear() -> str | None:
      async for message in socket:
        if message.type == aiohttp.WSMsgType.BINARY:
          number = parse_answer(message.data)[0]
          if (number + 1) / FPS > WARM_UP:
            times.append(1000 * (time.perf_counter() - sent.pop(number)))
        elif message.json()["type"] == "end":
          return message.json()["message"]
      return None

    hearing = asyncio.create_task(hear())
    count = round((seconds + WARM_UP) * FPS)
    for number in range(count):
      await asyncio.sleep(start + number / FPS - time.perf_counter())
      if socket.closed:
        break
      sent[number] = time.perf_counter()
      await socket.send_bytes(make_frame(number, sounds[number % FPS]))
    await asyncio.sleep(1.0)
    await socket.close()
    return await hearing


async def speak(port: int, conversations: int, seconds: float) -> tuple[list[float], list[str]]:
  """All pages at once: milliseconds of all answers, and why conversations ended early."""
  times: list[float] = []
  begin, rng = time.perf_counter() + 0.5, np.random.default_rng(0)
  async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
    pages = [converse(session, port, begin + rng.uniform(0, 1 / FPS), seconds, times) for _ in range(conversations)]
    ends = await asyncio.gather(*pages)
  return times, [end for end in ends if end]


def measure(conversations: int, seconds: float, *arguments) -> dict[str, Any]:
  """A row."""
  context = multiprocessing.get_context("spawn")
  ours, theirs = context.Pipe()
  workdir, size, cache = arguments
  server = context.Process(target=serve, args=(theirs, workdir, size, conversations, cache))
  server.start()
  theirs.close()
  told = ours.recv()
  if isinstance(told, str):
    server.join()
    sys.exit(f"error: {told}")
  port, about, generator = told
  before = {name: processor_seconds(pid) for name, pid in (("generator", generator), ("server", server.pid))}
  began = time.perf_counter()
  times, ends = asyncio.run(speak(port, conversations, seconds))
  share = 100 / (time.perf_counter() - began) / conversations
  spent = {name: share * (processor_seconds(pid) - before[name]) for name, pid in (("generator", generator), ("server", server.pid))}
  ours.send(None)
  server.join()
  expected = conversations * round(seconds * FPS)
  return {
      "conversations": conversations,
      "device": about["device"],
      "step_ms": about["step_ms"],
      "median_ms": float(np.median(times)),
      "percentile_99_ms": float(np.percentile(times, 99)),
      "most_ms": max(times),
      # An answer that never came is late too.
      "late": 1 - sum(x < FRAME_MS for x in times) / expected,
      "ended": ends,
      "generator_core": spent["generator"],
      "server_core": spent["server"],
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", help="a run with a causal generator")
  parser.add_argument("--size", choices=("demo", "paper"), default="demo", help="of a generator of random parameters")
  parser.add_argument("--conversations", nargs="+", type=int, default=(1, 2, 4, 8, 16, 32, 64))
  parser.add_argument("--seconds", type=float, default=20.0, help="that count")
  parser.add_argument("--json", help="file to write the numbers to")
  options = parser.parse_args()
  if min(options.conversations) < 1 or options.seconds <= 0:
    parser.error("--conversations and --seconds must be positive")
  what = options.workdir or f"random parameters, size {options.size}"
  print(f"{what}; {os.cpu_count()} cores, jax {jax.__version__}; {options.seconds:g} s each\n")
  print("| conversations | a step of all, ms | answered after, ms: median | 99th percentile | most | later than 40 ms, % | ended early "
        "| generator, % of a core each | server |\n|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
  rows = []
  for conversations in options.conversations:
    row = measure(conversations, options.seconds, options.workdir, options.size, os.environ.get("JAX_COMPILATION_CACHE_DIR"))
    rows.append(row)
    print("| {conversations} | {step_ms:.2f} | {median_ms:.1f} | {percentile_99_ms:.1f} | {most_ms:.0f} | ".format(**row) +
          f"{100 * row['late']:.2f} | {len(row['ended'])} | {row['generator_core']:.1f} | {row['server_core']:.1f} |", flush=True)
    for message in sorted(set(row["ended"])):
      print(f"ended early: {message}")
  # An answer that never came counts as late, so that it is no more than a hundredth that is.
  held = [row["conversations"] for row in rows if row["late"] < 0.01 and not row["ended"]]
  print(f"\n{max(held, default=0)} of those hold p99 < {FRAME_MS:g} ms on {rows[0]['device']}")
  if options.json:
    with whole_file(options.json) as file:
      file.write((json.dumps({"what": what, "cores": os.cpu_count(), "rows": rows}, indent=2) + "\n").encode())


if __name__ == "__main__":
  main()
