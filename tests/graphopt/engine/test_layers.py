"""Entries of an engine's layers, as TensorRT writes them."""

from types import SimpleNamespace
from typing import Any

import pytest

from graphopt.engine.flavour import Flavour
from graphopt.engine.layers import layer_entries
from graphopt.engine.messages import Messages


def entries(text: str, context: Any = None) -> tuple[list[dict[str, Any]], Any]:
    trt = SimpleNamespace(LayerInformationFormat=SimpleNamespace(JSON=1))
    inspector = SimpleNamespace(get_engine_information=lambda form: text)
    engine = SimpleNamespace(create_engine_inspector=lambda: inspector)
    found = layer_entries(Flavour("tensorrt", "8.6.1", trt, Messages(), None), engine, context)
    return found, getattr(inspector, "execution_context", None)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('{"Layers": ["a", {"Name": "b", "LayerType": "Plugin"}]}', ["a", "b"]),
        ('{"Layers": [{"Name": "two\nlines\t"}]}', ["two\nlines\t"]),  # as TensorRT 8 writes plugins
        ("{}", []),
    ],
)
def test_names(text: str, names: list[str]) -> None:
    found, context = entries(text)
    assert [entry["Name"] for entry in found] == names
    assert context is None


def test_context() -> None:
    assert entries('{"Layers": []}', "context")[1] == "context"
