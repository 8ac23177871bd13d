"""What does not fit a head is refused with one line that says what to do."""

import types

import pytest

from rsatalker_jax.errors import InputError
from rsatalker_jax.head import check_basis
from rsatalker_jax.types import ARKIT_EXPRESSIONS, BASES, EXPRESSION_DIM


def head(basis):
  return types.SimpleNamespace(basis=basis)


def test_every_basis_fits_itself_alone():
  for own in BASES:
    for other in BASES:
      if own == other:
        check_basis(head(own), other, "a.npz")
      else:
        with pytest.raises(InputError, match=f"a.npz: basis: found {other}, expected {own}, as the head has; what to do: "):
          check_basis(head(own), other, "a.npz")


def test_the_line_names_the_command():
  with pytest.raises(InputError) as error:
    check_basis(head("arkit"), "flame2020", "clips/a.npz", head_path="demo_head.npz")
  command = "python -m rsatalker_jax convert --motion=clips/a.npz --from_head=FLAME2020/generic_model.pkl --to_head=demo_head.npz --out=converted.npz"
  assert command in str(error.value) and "\n" not in str(error.value)
  with pytest.raises(InputError, match="--motion=talk --from_head=assets/head/demo_head.npz --to_head=flame2023.pkl --out=converted$"):
    check_basis(head("flame2023"), "arkit", "talk", head_path="flame2023.pkl")
  with pytest.raises(InputError, match="what to do: nothing"):
    check_basis(head("flame2023"), "arkit", "a.npz", remedy="nothing")


def test_nobody_guesses_a_year():
  with pytest.raises(InputError, match="generic_model.pkl: basis: found a FLAME model that does not tell its year, expected .*head.basis"):
    check_basis(head(None), "flame2020", "a.npz", head_path="generic_model.pkl")


def test_arkit_has_fifty_names_in_alphabetical_order():
  assert len(set(ARKIT_EXPRESSIONS)) == EXPRESSION_DIM and list(ARKIT_EXPRESSIONS) == sorted(ARKIT_EXPRESSIONS)
