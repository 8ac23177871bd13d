"""The orders in which participants see videos, balanced over participants.

Orders are rows of Williams' design (Williams 1949, Aust. J. Sci. Res. A 2, 149): a Latin square in which each of n things
also comes right after each other equally often, so that neither place nor what was seen just before favours any. For odd n
that takes 2n rows, a square and its mirror image.
"""

import math
from collections.abc import Sequence


def williams_orders(count: int) -> list[list[int]]:
  """Rows of Williams' design for 0 ... count - 1: `count` of them if it is even or 1, else twice as many."""
  # 0, 1, n-1, 2, n-2, ...: all steps from one to the next differ, modulo n.
  first = [0]
  for step in range(1, count):
    first.append((step + 1) // 2 if step % 2 else count - step // 2)
  rows = [[(item + row) % count for item in first] for row in range(count)]
  return rows if count % 2 == 0 or count == 1 else rows + [row[::-1] for row in rows]


def order_trials(number: int, conversations: Sequence[str], methods: Sequence[str]) -> list[tuple[str, str]]:
  """What participant `number`, counted from 0, sees: (conversation, method), the methods of a conversation together.

  Conversations come in the order of one row, the methods of each in that of another. Every `balanced_count` participants in
  a row have met each conversation in all orders of methods. After as many as make both designs end together, the row of
  methods moves on by one against that of conversations, so that in time each meets each.
  """
  orders, squares = williams_orders(len(conversations)), williams_orders(len(methods))
  shift = number // math.lcm(len(orders), len(squares))
  trials = []
  for conversation in orders[number % len(orders)]:
    square = squares[(number + shift + conversation) % len(squares)]
    trials += [(conversations[conversation], methods[method]) for method in square]
  return trials


def balanced_count(methods: int) -> int:
  """How many participants in a row have met each conversation in all orders of its `methods`, each order once."""
  return len(williams_orders(methods))
