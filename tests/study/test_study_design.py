"""Orders are balanced: for place, for what comes before, and for each conversation."""

import collections
import itertools

import pytest

from rsatalker_jax.study import design


@pytest.mark.parametrize("count", range(1, 10))
def test_everything_comes_equally_often_at_each_place_and_after_each_other(count):
  orders = design.williams_orders(count)
  assert len(orders) == (count if count % 2 == 0 or count == 1 else 2 * count)
  assert all(sorted(order) == list(range(count)) for order in orders)
  times = len(orders) // count
  for place in range(count):
    assert collections.Counter(order[place] for order in orders) == dict.fromkeys(range(count), times)
  pairs = collections.Counter(pair for order in orders for pair in itertools.pairwise(order))
  assert pairs == dict.fromkeys(itertools.permutations(range(count), 2), times)


def test_the_square_of_four_is_williams():
  assert design.williams_orders(4) == [[0, 1, 3, 2], [1, 2, 0, 3], [2, 3, 1, 0], [3, 0, 2, 1]]


@pytest.mark.parametrize("conversations, methods", [(8, 4), (1, 4), (3, 3), (5, 2), (4, 4), (5, 3), (2, 4)])
def test_each_conversation_meets_all_orders_of_methods(conversations, methods):
  names, ways = [f"c{i}" for i in range(conversations)], [f"m{i}" for i in range(methods)]
  period = design.balanced_count(methods)
  for first in (0, period, 3 * period):
    seen = collections.Counter()
    for number in range(first, first + period):
      trials = design.order_trials(number, names, ways)
      assert sorted(trials) == sorted(itertools.product(names, ways))
      # The methods of a conversation come together.
      assert len(list(itertools.groupby(trials, lambda trial: trial[0]))) == conversations
      for name in names:
        seen[name, tuple(method for conversation, method in trials if conversation == name)] += 1
    assert len(seen) == conversations * period and set(seen.values()) == {1}


def test_conversations_come_equally_often_at_each_place():
  names, ways = [f"c{i}" for i in range(8)], [f"m{i}" for i in range(4)]
  places = collections.Counter()
  for number in range(24):
    trials = design.order_trials(number, names, ways)
    places.update((place, conversation) for place, (conversation, _) in enumerate(trials[::4]))
  assert len(places) == 64 and set(places.values()) == {3}


def test_in_time_each_order_of_conversations_meets_each_order_of_methods():
  names, ways = [f"c{i}" for i in range(4)], [f"m{i}" for i in range(4)]
  met = collections.Counter()
  for number in range(16):
    trials = design.order_trials(number, names, ways)
    conversations = tuple(conversation for conversation, _ in trials[::4])
    met[conversations, tuple(method for conversation, method in trials if conversation == "c0")] += 1
  assert len(met) == 16
