import pytest

from graphopt.errors import BenchError
from graphopt.explain.devices import DEVICES, device


def test_known_by_name() -> None:
    assert device("h100") is DEVICES["h100"]
    assert device("h100").compute_capability == 90


def test_unknown_name() -> None:
    with pytest.raises(BenchError, match=r"no GPU 'h10' to plan for; did you mean 'h100'"):
        device("h10")
