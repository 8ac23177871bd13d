"""The estimate of a step's time, against arithmetic by hand with a chip of round numbers."""

import dataclasses

import pytest

from tools import roofline
from tools.hlo_traffic import Collective
from tools.roofline import Chip, Cost

# 100 FLOPs and 10 bytes a second, links of 2 bytes a second; a torus from 4 on.
CHIP = Chip("round", flops=100, memory=1000, bandwidth=10, link=2, wraps=4, source="")


@pytest.fixture(autouse=True)
def no_latency(monkeypatch):
  monkeypatch.setattr(roofline, "HOP", 0)


def test_a_chips_time_is_that_of_the_slower_of_arithmetic_and_memory():
  found = roofline.estimate(Cost(flops=300, least=10, memory=20, collectives=()), CHIP, (1,))
  assert (found.compute, found.least, found.memory, found.communication) == (3, 1, 2, 0)
  assert (found.shortest, found.longest, found.bound, found.efficiency) == (3, 3, "compute", 1)
  found = roofline.estimate(Cost(flops=300, least=40, memory=50, collectives=()), CHIP, (1,))
  assert (found.shortest, found.longest, found.bound) == (4, 5, "memory")


@pytest.mark.parametrize("shape, links", [
    ((1,), 0), ((2,), 1), ((2, 2), 2), ((3,), 1), ((4,), 2), ((2, 4), 3), ((4, 4), 4), ((4, 4, 4), 6), ((1, 4), 2),
])  # fmt: skip
def test_links_of_a_chip_with_the_fewest(shape, links):
  assert roofline.chip_bandwidth(CHIP, shape) == 2 * links


def test_a_switch_gives_every_chip_its_link():
  switch = dataclasses.replace(CHIP, wraps=0)
  assert roofline.chip_bandwidth(switch, (8,)) == 2 and roofline.hops(switch, (8,)) == 1


@pytest.mark.parametrize("shape, hops", [((1,), 0), ((2,), 1), ((2, 2), 2), ((3,), 2), ((4,), 2), ((16, 16), 16), ((2, 4), 3)])
def test_hops_to_the_farthest_chip(shape, hops):
  assert roofline.hops(CHIP, shape) == hops


def test_collectives_follow_each_other_behind_the_chips_work(monkeypatch):
  collectives = (Collective("all-reduce", 80, 16, count=2), Collective("all-gather", 4, 16))
  cost = Cost(flops=300, least=0, memory=1000, collectives=collectives)
  # Twice 2 * 15/16 * 80 bytes, and 15 * 4, by four links of 2.
  assert cost.sent == 2 * 150 + 60
  found = roofline.estimate(cost, CHIP, (4, 4))
  assert found.communication == (2 * 150 + 60) / 8 and found.bound == "communication"
  assert (found.shortest, found.longest, found.efficiency) == (3 + 45, 100 + 45, 3 / 48)
  # 180 s of arithmetic to 45 s of communication are four fifths: sixty times the batch.
  assert found.batch_for(0.8) == pytest.approx(60) and found.batch_for(0.5) == pytest.approx(15)
  monkeypatch.setattr(roofline, "HOP", 0.5)
  # 4 hops across the torus; an all-reduce goes there and back.
  assert roofline.estimate(cost, CHIP, (4, 4)).communication == 45 + 0.5 * 4 * (2 * 2 + 1)


def test_each_slice_has_its_own_links_and_rings(monkeypatch):
  monkeypatch.setitem(roofline.CHIPS, "round", CHIP)
  monkeypatch.setitem(roofline.SLICES, "round", {1: (1,), 2: (2,), 16: (4, 4)})
  cost = Cost(flops=1000, least=0, memory=0, collectives=(Collective("all-reduce", 40, 16),))
  found = roofline.scaling(cost, "round")
  # 10 s of work; of two chips each sends 40 bytes by one link, of 16 each 75 by four.
  assert {chips: one.shortest for chips, one in found.items()} == {1: 10, 2: 10 + 40 / 2, 16: pytest.approx(10 + 75 / 8)}


def test_published_numbers_of_pods_follow_from_those_of_chips():
  # docs.cloud.google.com/tpu/docs/v5e and v6e: all-reduce bandwidth of a pod of 256, 51.2 and 102.4 TB/s.
  for kind, published in (("v5e", 51.2e12), ("v6e", 102.4e12)):
    assert 256 * roofline.chip_bandwidth(roofline.CHIPS[kind], (16, 16)) == published
  assert roofline.chip_bandwidth(roofline.CHIPS["v5p"], (8, 8, 8)) == 4800e9 / 8


def test_slices_have_the_chips_that_they_are_listed_under():
  for kind, slices in roofline.SLICES.items():
    for chips, shape in slices.items():
      count = 1
      for size in shape:
        count *= size
      assert count == chips, (kind, chips)
  assert roofline.slice_shape("v5p:8x4x2") == (8, 4, 2)
