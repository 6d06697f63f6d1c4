"""Sizes read from a model are those it was built with, whoever exported it."""

from pathlib import Path

import onnx_graphsurgeon as gs
import pytest

from graphopt import compile, ir
from graphopt.cli.estimate import config_workload
from graphopt.errors import ModelError
from graphopt.estimate.workload import DECODERS, Attention, Workload
from graphopt.models.presets import LLAMA_PRESETS
from tests.support.decoders import CONFIG, write_decoder

EXPORTERS = Path(__file__).parents[2] / "fixtures" / "exporters"


def of_file(path: Path) -> Workload:
    model = ir.load(path)
    compile.canonicalize(model)
    return Workload.of_model(model)


def sizes(workload: Workload) -> tuple[list[tuple[int, int]], list[tuple[int, int, int, int]]]:
    return (
        sorted((x.n, x.k) for x in workload.linears),
        [(a.heads, a.kv_heads, a.key_size, a.value_size) for a in workload.attention],
    )


def test_a_model_and_its_sizes_give_the_same(tmp_path: Path) -> None:
    assert sizes(of_file(write_decoder(tmp_path / "m.onnx"))) == sizes(config_workload(CONFIG))


@pytest.mark.parametrize(
    "name", ["llama_dynamo18", "llama_torchscript17", "llama_genai_fp32", "llama_genai_mha", "llama_dynamo23_kv"]
)
def test_exporters_agree(name: str) -> None:
    assert set(sizes(of_file(EXPORTERS / f"{name}.onnx"))[1]) == {(4, 2, 16, 16)}


def test_an_encoder_has_attention_too() -> None:
    workload = of_file(EXPORTERS / "bert_torchscript17.onnx")
    assert workload.attention
    assert all(a.heads == a.kv_heads for a in workload.attention)


@pytest.mark.parametrize(("name", "millions"), [("opt-1.3b", 1316), ("opt-6.7b", 6658), ("opt-13b", 12853)])
def test_decoders_have_the_published_number_of_parameters(name: str, millions: float) -> None:
    """Embeddings are tied to the head; positions, norms and biases are below one percent."""
    workload = Workload.of_decoder(**DECODERS[name])  # type: ignore[arg-type]
    assert sum(x.n * x.k for x in workload.linears) / 1e6 == pytest.approx(millions, rel=1e-2)
    assert name not in LLAMA_PRESETS


def test_a_model_without_linears_is_refused() -> None:
    model = ir.load(EXPORTERS / "llama_dynamo18.onnx")
    with pytest.raises(ModelError, match="no linears"):
        Workload.of_model(model)


def test_heads_of_unknown_size_are_refused() -> None:
    model = ir.load(EXPORTERS / "llama_dynamo18.onnx")
    compile.canonicalize(model)
    node = next(n for n in model.graph.nodes if n.op == "Attention")
    for tensor in model.graph.tensors().values():
        if isinstance(tensor, gs.Variable):
            tensor.shape = tensor.shape and ["any"] * len(tensor.shape)
    with pytest.raises(ModelError, match=f"attention '{node.name}' have no fixed sizes"):
        Workload.of_model(model)


def test_names_let_recipes_of_bits_match() -> None:
    workload = Workload.of_decoder(**DECODERS["opt-1.3b"])  # type: ignore[arg-type]
    assert workload.linears[3].name == "layers.0.out_proj"
    assert workload.attention[0] == Attention("layers.0.attention", 32, 32, 64, 64)
