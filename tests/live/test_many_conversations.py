"""Several conversations over sockets at once: each has its own answers, and one whose page or whose handler breaks disturbs no other."""

import asyncio

import numpy as np

from live import probe
from live.talks import serve, talk
from rsatalker_jax.live import server

BREAKS = np.full(640, 12345, np.int16)


def test_each_hears_its_own_answers_at_the_same_time():
  """Four that speak at their own pace, in bursts and one by one."""
  levels = {0: 500, 1: 1000, 2: 2000, 3: 4000}

  async def converse(port, number):
    async with talk(port) as page:
      await page.tell("relation", relation=("blood,equal", "non_blood,unequal")[number % 2])
      await page.ask()
      for burst in range(1, 5):
        sound = np.full(640, levels[number], np.int16)
        for _ in range(burst):
          await page.hear(sound)
        for _ in range(burst):
          heard, _, motion, _ = await page.answer()
          assert motion[probe.FRAME] == heard and motion[probe.RELATION].tolist() == [1 - number % 2] * 2
          np.testing.assert_allclose(motion[probe.JAW], 2 * levels[number] / 32768, rtol=1e-5)
        await asyncio.sleep(0.01 * number)
      assert page.sent == 11

  async def main(port):
    await asyncio.gather(*(converse(port, number) for number in levels))

  with serve(conversations=4) as port:
    asyncio.run(main(port))


def test_a_fault_of_the_program_ends_the_conversation_in_which_it_is(monkeypatch):
  take = server.Conversation._take_frame

  def fail(self, data):
    if data[4:6] == BREAKS[:1].tobytes():
      raise RuntimeError("a fault")
    take(self, data)

  monkeypatch.setattr(server.Conversation, "_take_frame", fail)

  async def main(port):
    async with talk(port) as other, talk(port) as a:
      await a.ask(), await other.ask()
      await a.hear(BREAKS)
      await a.end()
      assert (await other.ask())[2][probe.FRAME] == 1
      async with talk(port) as again:  # Its place is free again.
        assert (await again.ask())[2][probe.FRAME] == 0 and (await other.ask())[2][probe.FRAME] == 2

  with serve(conversations=2) as port:
    asyncio.run(main(port))


def test_a_page_that_takes_no_answers_holds_up_nobody_else(monkeypatch):
  """Its connection stands; what it does not take is not kept for ever."""
  monkeypatch.setattr(server, "_MOST_WAITING", 10)
  monkeypatch.setattr(server, "_PATIENCE", 0.2)
  write, stuck = server.Conversation._write, []

  async def hang(self):
    if not stuck:
      stuck.append(self)
      await asyncio.sleep(60)
    await write(self)

  monkeypatch.setattr(server.Conversation, "_write", hang)

  async def main(port):
    async with talk(port) as a, talk(port) as other:
      await other.ask()
      for _ in range(8):  # As long as its answers are kept, the other one is answered too.
        await a.hear()
        await other.ask()
      for _ in range(4):
        await a.hear()
      while not stuck[0]._ended:
        await other.ask()
        await asyncio.sleep(0.05)
      await a.hear()
      await a.end()
      assert stuck[0]._ended and stuck[0]._answers.qsize() <= 12
      number, _, motion, _ = await other.ask()
      assert motion[probe.FRAME] == number >= 9
      async with talk(port) as again:
        assert (await again.ask())[2][probe.FRAME] == 0

  with serve(conversations=2) as port:
    asyncio.run(main(port))
