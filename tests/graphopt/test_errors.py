"""User errors and internal errors are not related, and hints are useful."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt import errors


def test_internal_errors_are_not_user_errors() -> None:
    assert not issubclass(errors.InternalError, errors.GraphOptError)
    assert not issubclass(errors.ComparisonFailed, errors.GraphOptError)


@pytest.mark.parametrize("name", [n for n in errors.__all__ if n.endswith("Error") and n != "InternalError"])
def test_user_errors_exit_with_2(name: str) -> None:
    kind = getattr(errors, name)
    assert issubclass(kind, errors.GraphOptError)
    assert kind.exit_code == 2
    assert errors.ComparisonFailed.exit_code == 1


def test_nearest() -> None:
    assert errors.nearest("treshold", ["threshold", "capacity"]) == "; did you mean 'threshold'?"
    assert errors.nearest("zzz", ["b", "a"]) == "; known: a, b"


@given(word=st.text(), known=st.lists(st.text(), max_size=5))
def test_nearest_names_only_what_is_known(word: str, known: list[str]) -> None:
    hint = errors.nearest(word, known)
    assert hint.startswith(("; did you mean '", "; known: "))
    assert any(k in hint for k in known) or not known
