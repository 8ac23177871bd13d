"""Traffic of programs written by hand, in XLA's own text."""

import pytest

from tools.hlo_traffic import Collective, read_traffic, type_bytes

# A loop of 3 rounds with a collective in it, an all-gather that is started and awaited, one of each other kind, and a fusion.
PROGRAM = """HloModule jit_step, is_scheduled=true, num_partitions=8

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%body (state: (s32[], f32[100])) -> (s32[], f32[100]) {
  %state = (s32[], f32[100]{0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[100]{0} get-tuple-element(%state), index=1
  %psum = f32[100]{0:T(128)} all-reduce(%x), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%sum
  ROOT %out = (s32[], f32[100]{0}) tuple(%i, %psum)
}

%condition (state: (s32[], f32[100])) -> pred[] {
  %state.1 = (s32[], f32[100]{0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

%fused (p0: f32[1000], p1: s32[]) -> f32[10] {
  %p0 = f32[1000]{0} parameter(0)
  %p1 = s32[] parameter(1)
  %cut = f32[10]{0} dynamic-slice(%p0, %p1), dynamic_slice_sizes={10}
  ROOT %twice = f32[10]{0} add(%cut, %cut)
}

ENTRY %main (x: f32[100], big: f32[1000], w: bf16[16,16]) -> (f32[100], f32[10]) {
  %x.1 = f32[100]{0} parameter(0)
  %big = f32[1000]{0} parameter(1)
  %w = bf16[16,16]{1,0:T(8,128)(2,1)} parameter(2)
  %zero = s32[] constant(0)
  %start = (s32[], f32[100]{0}) tuple(%zero, %x.1)
  %loop = (s32[], f32[100]{0}) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %cut.1 = f32[10]{0} fusion(%big, %zero), kind=kLoop, calls=%fused
  %gather = (bf16[16,16]{1,0}, bf16[128,16]{1,0}) all-gather-start(%w), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  %gathered = bf16[128,16]{1,0} all-gather-done(%gather)
  %scatter = f32[25]{0} reduce-scatter(%x.1), replica_groups=mesh['data'=2,'fsdp'=4] {'fsdp'}, dimensions={0}, to_apply=%sum
  %swap = f32[100]{0} all-to-all(%x.1), replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}
  %shift = f32[100]{0} collective-permute(%x.1), source_target_pairs={{0,1},{1,0}}
  %everyone = f32[100]{0} all-reduce(%x.1), replica_groups={}, to_apply=%sum
  %again = f32[100]{0} all-reduce(%x.1), replica_groups={}, to_apply=%sum
  %product = (f32[100]{0}, s8[33554432]{0}) custom-call(%x.1, %x.1), custom_call_target="__cublas$gemm"
  %alone = f32[100]{0} all-reduce(%x.1), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%sum
  %near = f32[100]{0:T(128)S(1)} copy(%x.1)
  %result = f32[100]{0} get-tuple-element(%loop), index=1
  ROOT %all = (f32[100]{0}, f32[10]{0}) tuple(%result, %cut.1)
}
"""


def test_collectives_by_kind_size_group_and_number():
  found = {(one.kind, one.bytes, one.group, one.count) for one in read_traffic(PROGRAM, 8).collectives}
  assert found == {
      ("all-reduce", 400, 4, 3),  # In the loop.
      ("all-gather", 512, 8, 1),
      ("reduce-scatter", 400, 4, 1),
      ("all-to-all", 400, 2, 1),
      ("collective-permute", 400, 2, 1),
      ("all-reduce", 400, 8, 2),
  }


# What a chip of a ring sends, of 800 bytes over 8 chips (all-gather: 800 bytes each).
@pytest.mark.parametrize("kind, sent", [
    ("all-reduce", 1400), ("reduce-scatter", 700), ("all-gather", 5600), ("all-to-all", 700), ("collective-permute", 800),
])  # fmt: skip
def test_bytes_sent_around_a_ring(kind, sent):
  assert Collective(kind, 800, 8).sent == sent
  assert Collective(kind, 800, 2).over(8).sent == sent


def test_memory_traffic():
  # Three rounds of a collective's operand and result; the fusion's slice, index and result; collectives of the entry; a product's
  # operands and result, not the room that it works in; the copy's operand, whose result lies in another memory.
  loop = 3 * (400 + 400)
  fusion = 40 + 4 + 40
  collectives = 2 * 512 + (400 + 100) + (400 + 400) * 5
  assert read_traffic(PROGRAM, 8).memory == loop + fusion + collectives + 3 * 400 + 400


def test_loops_of_unknown_length_are_counted_and_count_once():
  unknown = PROGRAM.replace(', backend_config={"known_trip_count":{"n":"3"}}', "")
  traffic = read_traffic(unknown, 8)
  assert traffic.endless == 1 and read_traffic(PROGRAM, 8).endless == 0
  assert ("all-reduce", 400, 4, 1) in {(one.kind, one.bytes, one.group, one.count) for one in traffic.collectives}


def test_results_that_are_updated_in_place_count_as_their_update():
  program = """
%fused (p0: f32[1000], p1: f32[10], p2: s32[]) -> f32[1000] {
  %p0 = f32[1000]{0} parameter(0)
  %p1 = f32[10]{0} parameter(1)
  %p2 = s32[] parameter(2)
  ROOT %update = f32[1000]{0} dynamic-update-slice(%p0, %p1, %p2)
}

ENTRY %main (a: f32[1000], b: f32[10], c: s32[]) -> f32[1000] {
  %a = f32[1000]{0} parameter(0)
  %b = f32[10]{0} parameter(1)
  %c = s32[] parameter(2)
  ROOT %out = f32[1000]{0} fusion(%a, %b, %c), kind=kLoop, calls=%fused
}
"""
  assert read_traffic(program, 1).memory == 2 * 40 + 40 + 4  # The update written where it is read again, its operand, the index.


@pytest.mark.parametrize("text, size", [
    ("f32[8,128]{1,0:T(8,128)}", 4096), ("bf16[3]{0}", 6), ("pred[5]", 5), ("s4[5]", 3), ("f8e4m3fn[7]{0}", 7), ("c64[2]", 16),
    ("u32[]", 4), ("(f32[2]{0}, /*index=1*/s8[3]{0})", 11), ("token[]", 0),
])  # fmt: skip
def test_bytes_of_a_type(text, size):
  assert type_bytes(text) == size


def test_bytes_in_the_main_memory():
  types = "(f32[2]{0:T(128)S(1)}, f32[3]{0:T(128)}, u32[]{:S(2)})"
  assert (type_bytes(types), type_bytes(types, everywhere=False)) == (24, 12)
