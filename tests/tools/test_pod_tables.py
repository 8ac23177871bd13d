"""What is said of steps that were compiled, by steps made up."""

import pytest

from tools import pod_tables
from tools.hlo_traffic import Collective
from tools.pod_tables import Step
from tools.roofline import Cost


def make_step(**changes) -> Step:
  values = dict(
      stage="motion", target="v5e:16x16", devices=256, batch="2048 windows of 200", arguments=277_000_000, temporaries=2_170_000_000,
      code=99_000_000, endless=0, seconds=1.0,
      cost=Cost(197e9, 819e6 / 4, 819e6 * 2, (Collective("all-reduce", 40_000_000, 256, 2), Collective("all-gather", 1000, 256))),
  )  # fmt: skip
  return Step(**values | changes)


def cells(table: str) -> list[list[str]]:
  return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_memory_against_its_limit():
  fits, full = make_step(), make_step(stage="joint", temporaries=16 * 2**30)
  rows = cells(pod_tables.memory_table([fits, full]))
  assert len({len(row) for row in rows}) == 1
  assert rows[2] == ["motion", "v5e:16x16", "2048 windows of 200", "277 MB", "2.17 GB", "99 MB", "2.55 GB of 17.18 GB", "yes"]
  assert rows[3][-2:] == ["17.56 GB of 17.18 GB", "no"]
  assert pod_tables.check_fits(fits) is None
  assert pod_tables.check_fits(full) == "v5e:16x16, joint: found 17.56 GB a chip, expected at most 17.18 GB"


# Arguments, temporaries and code each take the last byte.
@pytest.mark.parametrize("part", ["arguments", "temporaries", "code"])
def test_a_byte_too_many_does_not_fit(part):
  empty = dict(arguments=0, temporaries=0, code=0)
  assert pod_tables.check_fits(make_step(**empty | {part: 16 * 2**30})) is None
  assert pod_tables.check_fits(make_step(**empty | {part: 16 * 2**30 + 1}))


def test_work_and_times():
  head, _, row = cells(pod_tables.work_table([make_step()]))
  found = dict(zip(head, row))
  assert found["GFLOPs"] == "197" and found["memory traffic, least to most"] == "205 MB to 1.64 GB"
  assert found["FLOPs/byte (ridge)"] == "120 to 962 (241)"
  assert found["collectives"] == "1 all-gather, 2 all-reduce"
  # Twice 2 * 255/256 * 40 MB and 255 * 1000 bytes, by 200 GB/s; 16 hops, five times.
  assert found["sent"] == "160 MB"
  assert found["compute, ms"] == "1.00" and found["memory, ms"] == "0.25 to 2.00" and found["communication, ms"] == "0.88"
  assert found["step, ms"] == "1.88 to 2.88" and found["bound by"] == "compute"


def test_scaling_has_a_column_for_every_number_of_chips():
  head, _, row = cells(pod_tables.scaling_table([make_step()]))
  found = dict(zip(head, row))
  assert found["chip"] == "TPU v5e" and found["512 chips"] == ""  # There is no v5e of 512.
  assert found["256 chips"] == "53 %"  # 1 ms of 1.88 ms.
  # 8 chips of a corner's two links: 140 MB and 7 kB by 100 GB/s, and 4 hops five times: 1.42 ms. 256 need 4 times 0.88 ms of work.
  assert found["8 chips"] == "41 %" and found["against 8"] == "129 %" and found["batch for 80 %"] == "3.5 times"
  larger = make_step(cost=Cost(197e10, 0, 0, make_step().cost.collectives))
  assert cells(pod_tables.scaling_table([larger]))[2][-1] == "as it is"


def test_loops_of_unknown_length_are_named():
  note = "v5e:16x16, avatar: 2 loops whose rounds XLA does not know count as one round in the traffic."
  assert pod_tables.notes([make_step(), make_step(stage="avatar", endless=2)]) == note


def test_steps_pass_between_processes():
  assert pod_tables.from_json(pod_tables.to_json(make_step())) == make_step()
