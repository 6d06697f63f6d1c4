"""The encoder against a float64 numpy encoder written from the definition."""

import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from graphopt.errors import ModelError
from graphopt.models.bert import BertConfig, bert_model, build_bert
from graphopt.models.weights import RandomWeights

CONFIG = BertConfig(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=32,
)
#: float32 rounding, 2^-24, grown by sums of 160 terms and two layers; outputs are up to 20 (planted outliers).
FLOAT32_NOISE = 2e-5
#: The same encoder in float16: 2^-11 per operation, a dozen operations deep.
FLOAT16_NOISE = 0.05


def reference(weights: RandomWeights[BertConfig], ids: np.ndarray, types: np.ndarray) -> np.ndarray:
    """Hidden states [seq, hidden] of one unpadded sequence in float64."""

    def get(name: str) -> np.ndarray:
        return weights.tensor(name).astype(np.float64)

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ get(f"{name}.weight").T + get(f"{name}.bias")

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + CONFIG.layer_norm_eps)
        return scaled * get(f"{name}.weight") + get(f"{name}.bias")

    dim = CONFIG.hidden_size // CONFIG.num_attention_heads
    x = get("embeddings.word_embeddings.weight")[ids] + get("embeddings.token_type_embeddings.weight")[types]
    x = norm(x + get("embeddings.position_embeddings.weight")[: len(ids)], "embeddings.LayerNorm")
    for i in range(CONFIG.num_hidden_layers):
        layer = f"encoder.layer.{i}"
        q, k, v = (linear(x, f"{layer}.attention.self.{part}") for part in ("query", "key", "value"))
        mixed = np.zeros_like(q)
        for at in range(0, CONFIG.hidden_size, dim):
            head = slice(at, at + dim)
            scores = np.exp(q[:, head] @ k[:, head].T / math.sqrt(dim))
            mixed[:, head] = scores / scores.sum(-1, keepdims=True) @ v[:, head]
        x = norm(linear(mixed, f"{layer}.attention.output.dense") + x, f"{layer}.attention.output.LayerNorm")
        h = linear(x, f"{layer}.intermediate.dense")
        h = h * 0.5 * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
        x = norm(linear(h, f"{layer}.output.dense") + x, f"{layer}.output.LayerNorm")
    return x


def run(path: Path, ids: np.ndarray, mask: np.ndarray, types: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"input_ids": ids, "attention_mask": mask, "token_type_ids": types})[0]


def batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    mask = np.ones((2, 9), np.int64)
    mask[1, 6:] = 0
    return rng.integers(0, CONFIG.vocab_size, (2, 9)), mask, rng.integers(0, 2, (2, 9))


@pytest.mark.parametrize("opset", [17, 18, 23])
def test_equals_the_definition_with_padding(tmp_path: Path, opset: int) -> None:
    weights = RandomWeights(CONFIG, 1, outliers=3)
    build_bert(CONFIG, weights, tmp_path / "m.onnx", opset=opset)
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
    ids, mask, types = batch()
    hidden = run(tmp_path / "m.onnx", ids, mask, types)
    for row, length in ((0, 9), (1, 6)):
        expected = reference(weights, ids[row, :length], types[row, :length])
        assert np.abs(expected).max() > 5
        np.testing.assert_allclose(hidden[row, :length], expected, atol=FLOAT32_NOISE * np.abs(expected).max(), rtol=0)


def test_float16_stays_close_to_float32(tmp_path: Path) -> None:
    weights = RandomWeights(CONFIG, 2)
    ids, mask, types = batch()
    results = []
    for dtype in ("float32", "float16"):
        build_bert(CONFIG, weights, tmp_path / f"{dtype}.onnx", dtype=dtype)
        results.append(run(tmp_path / f"{dtype}.onnx", ids, mask, types)[mask == 1])
    assert results[1].dtype == np.float16
    assert 0 < np.abs(results[1] - results[0]).max() < FLOAT16_NOISE


def test_bfloat16_is_a_valid_model(tmp_path: Path) -> None:
    build_bert(CONFIG, RandomWeights(CONFIG), tmp_path / "m.onnx", dtype="bfloat16")
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)


def test_names_follow_the_modules() -> None:
    model = bert_model(CONFIG, RandomWeights(CONFIG))
    names = [n.name for n in model.graph.nodes]
    assert len(set(names)) == len(names)
    linears = [n for n in model.graph.nodes if n.op == "MatMul" and n.inputs[1].name.endswith(".weight")]
    assert len(linears) == 2 * 6
    assert linears[0].name == "/encoder/layer.0/attention/self/query/MatMul"
    assert linears[0].inputs[1].name == "encoder.layer.0.attention.self.query.weight"
    constants = {t.name for t in model.graph.tensors().values() if t.name in CONFIG.weight_shapes()}
    assert constants == set(CONFIG.weight_shapes())


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ModelError, match="multiple of num_attention_heads"):
        BertConfig(hidden_size=100, num_attention_heads=12)
    with pytest.raises(ModelError, match="num_hidden_layers is 0"):
        BertConfig(num_hidden_layers=0)
