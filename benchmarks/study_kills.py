"""Whether a user study loses answers when its server is killed.

    python benchmarks/study_kills.py [--participants 24] [--methods 4] [--conversations 8] [--kills 20] [--seed 0]

All participants answer at once over HTTP, as their pages do: each answer is sent again, the same, until it is acknowledged.
Meanwhile the server is killed (SIGKILL) as often as is said, each time when a random number of answers has been acknowledged
and a random moment later, and started again. In the end the database must hold every answer that was acknowledged, as it was
sent, and each video of each participant once. Exits with 1 if not.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import os
import pathlib
import random
import sys
import tempfile

import aiohttp
import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
from rsatalker_jax.media.video import write_video
from rsatalker_jax.study import criteria
from rsatalker_jax.study.materials import read_materials
from rsatalker_jax.study.store import open_store

_ROOT = pathlib.Path(__file__).parents[1]
# What `python -m rsatalker_jax study` does, without the import of JAX, which all verbs share.
_SERVE = """
import sys
from rsatalker_jax.study import materials, server, store
study = materials.read_materials(sys.argv[2])
server.serve(study, store.open_store(sys.argv[1], study), host="127.0.0.1", port=0, url=None)
"""
_AT_MOST_LATER = 0.02  # Seconds from the answer at which a kill is due to the kill.
_RETRY = 0.05


@dataclasses.dataclass
class Outcome:
  """Attributes:
    acknowledged: what was sent, by (participant, position).
    stored: what the database holds, by the same.
    kills: of the server.
    broken: requests that a kill has cut off.
    unheard: answers that were stored but whose acknowledgement a kill cut off, as far as the next kill finds them.
  """

  acknowledged: dict[tuple[int, int], dict]
  stored: dict[tuple[int, int], dict]
  kills: int
  broken: int
  unheard: int

  @property
  def lost(self) -> list[tuple[int, int]]:
    """Acknowledged answers that are not there as they were sent."""
    return [place for place, answer in self.acknowledged.items() if self.stored.get(place) != answer]


class _Simulation:
  def __init__(self, study: pathlib.Path, videos: pathlib.Path, kills: int, seed: int):
    self._study, self._videos, self._seed = study, videos, seed
    store = open_store(study)
    self._tokens = store.tokens()
    self._total = store.progress()["trials"]
    store.close()
    moments = random.Random(seed)
    self._due = sorted(moments.sample(range(1, self._total), kills))
    self._later = [moments.uniform(0, _AT_MOST_LATER) for _ in self._due]
    self._base = ""
    self._acknowledged: dict[tuple[int, int], dict] = {}
    self._news = asyncio.Condition()
    self._broken = self._unheard = 0

  async def _start(self) -> asyncio.subprocess.Process:
    arguments = [sys.executable, "-c", _SERVE, str(self._study), str(self._videos)]
    process = await asyncio.create_subprocess_exec(*arguments, cwd=_ROOT, stdout=asyncio.subprocess.PIPE)
    while line := (await process.stdout.readline()).decode():
      if line.startswith("serving on "):
        self._base = line.split()[2].rstrip("/")
        return process
    raise RuntimeError(f"the server ended with status {await process.wait()}")

  async def _ask(self, session: aiohttp.ClientSession, path: str, data: dict | None = None) -> dict:
    """JSON of the server, however often it has to be asked."""
    while True:
      base = self._base
      try:
        request = session.get(base + path) if data is None else session.post(base + path, json=data, headers={"Origin": base})
        async with request as response:
          answer = await response.json()
          if response.status != 200:
            raise RuntimeError(f"{path}: {response.status} {answer}")
          return answer
      except aiohttp.ClientError as error:
        # Where nobody listens, nothing has been sent.
        self._broken += not isinstance(error, aiohttp.ClientConnectorError)
        await asyncio.sleep(_RETRY)

  async def _participate(self, session: aiohttp.ClientSession, number: int) -> None:
    path, choice = f"/s/{self._tokens[number]}", random.Random(f"{self._seed} {number}")
    await self._ask(session, f"{path}/consent", {})
    while (trial := (await self._ask(session, f"{path}/state"))["trial"]) is not None:
      position = (trial["conversation"] - 1) * trial["videos"] + trial["video"] - 1
      answer = {key: choice.randint(criteria.LEAST, criteria.MOST) for key in criteria.KEYS}
      client, comment = f"{choice.getrandbits(128):032x}", f"{number} {position}"
      sent = {"video": trial["id"], "client": client, "scores": answer, "comment": comment}
      await self._ask(session, f"{path}/answers", sent)
      async with self._news:
        self._acknowledged[number, position] = answer | {"comment": comment}
        self._news.notify_all()

  async def _kill_when_due(self, process: asyncio.subprocess.Process) -> asyncio.subprocess.Process:
    for due, later in zip(self._due, self._later, strict=True):
      async with self._news:
        await self._news.wait_for(lambda: len(self._acknowledged) >= due)
      await asyncio.sleep(later)
      process.kill()
      await process.wait()
      known = set(self._acknowledged)
      self._unheard += len(self._read().keys() - known)
      process = await self._start()
    return process

  def _read(self) -> dict[tuple[int, int], dict]:
    store = open_store(self._study)
    try:
      rows = store.answers()
    finally:
      store.close()
    stored = {(row["participant"], row["position"]): {key: row[key] for key in (*criteria.KEYS, "comment")} for row in rows}
    if len(stored) != len(rows):
      raise RuntimeError(f"{len(rows) - len(stored)} answers are there twice")
    return stored

  async def run(self) -> Outcome:
    process = await self._start()
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
      tasks = [asyncio.create_task(self._participate(session, number)) for number in self._tokens]
      killer = asyncio.create_task(self._kill_when_due(process))
      try:
        process = (await asyncio.gather(killer, *tasks))[0]
        process.kill()
        await process.wait()
      except BaseException:
        for task in (killer, *tasks):
          task.cancel()
        with contextlib.suppress(ProcessLookupError):
          process.kill()
        raise
    return Outcome(self._acknowledged, self._read(), len(self._due), self._broken, self._unheard)


def simulate(folder: pathlib.Path, *, participants: int, methods: int, conversations: int, kills: int, seed: int) -> Outcome:
  """Makes a study of tiny videos in `folder`, and runs it."""
  videos, study = folder / "videos", folder / "study"
  for conversation in range(conversations):
    for method in range(methods):
      frames = np.full((2, 16, 16, 3), 20 * method + conversation, np.uint8)
      write_video(videos / f"conversation{conversation}" / f"method{method}.mp4", frames)
  store = open_store(study, read_materials(videos))
  store.add_participants(participants)
  store.close()

  async def run() -> Outcome:
    return await _Simulation(study, videos, kills, seed).run()

  return asyncio.run(run())


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  for name, default in (("participants", 24), ("methods", 4), ("conversations", 8), ("kills", 20), ("seed", 0)):
    parser.add_argument(f"--{name}", type=int, default=default)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    outcome = simulate(pathlib.Path(folder), **vars(args))
  wanted = args.participants * args.methods * args.conversations
  print(f"{args.participants} participants, {args.methods} methods, {args.conversations} conversations: {wanted} answers")
  print(f"{outcome.kills} kills; {outcome.broken} requests were cut off, {outcome.unheard} of them after their answer was stored")
  print(f"{len(outcome.acknowledged)} acknowledged, {len(outcome.stored)} stored, {len(outcome.lost)} lost")
  sys.exit(bool(outcome.lost or len(outcome.stored) != wanted or len(outcome.acknowledged) != wanted))


if __name__ == "__main__":
  main()
