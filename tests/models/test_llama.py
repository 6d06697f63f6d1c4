"""The decoder against a float64 numpy decoder written from the definition, and against itself with a cache."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

from graphopt import ir
from graphopt.errors import ModelError, OutputError
from graphopt.models.llama import build_llama, llama_model
from graphopt.models.llama_config import LlamaConfig
from graphopt.models.weights import RandomWeights
from tests.support.decoders import CONFIG

#: float32 rounding, 2^-24, grown by the longest sum (512 terms) and two layers; logits are O(1).
FLOAT32_NOISE = 2e-5
#: The same decoder in float16: 2^-11 per operation, a dozen operations deep, logits up to 6.
FLOAT16_NOISE = 0.05
VARIANTS = {
    "grouped": CONFIG,
    "tied": replace(CONFIG, tie_word_embeddings=True),
    "multi_head": replace(CONFIG, num_key_value_heads=4),
    "multi_query": replace(CONFIG, num_key_value_heads=1),
    "wide_heads": replace(CONFIG, head_dim=24, rms_norm_eps=1e-6),
    "biases": replace(CONFIG, qkv_bias=True, o_bias=True, mlp_bias=True),
    "scaled_rotary": replace(CONFIG, rope_theta=5e5, rope_factors=tuple(np.linspace(1, 8, 8).tolist())),
}


def reference(config: LlamaConfig, weights: RandomWeights[LlamaConfig], ids: np.ndarray) -> np.ndarray:
    """Logits [seq, vocab] of one unpadded sequence in float64, head by head and query by query."""
    heads, groups, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + config.rms_norm_eps) * weights.tensor(f"{name}.weight")

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        y = x @ weights.tensor(f"{name}.weight").astype(np.float64).T
        return y + weights.tensor(f"{name}.bias") if f"{name}.bias" in config.weight_shapes() else y

    def rotate(v: np.ndarray, position: int) -> np.ndarray:
        factors = config.rope_factors or (1.0,) * (dim // 2)
        angle = position * config.rope_theta ** (-2 * np.arange(dim // 2) / dim) / np.array(factors)
        pair = (v[: dim // 2] + 1j * v[dim // 2 :]) * np.exp(1j * angle)
        return np.concatenate([pair.real, pair.imag])

    x = weights.tensor("model.embed_tokens.weight")[ids].astype(np.float64)
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        h = norm(x, f"{layer}.input_layernorm")
        q = linear(h, f"{layer}.self_attn.q_proj").reshape(-1, heads, dim)
        k = linear(h, f"{layer}.self_attn.k_proj").reshape(-1, groups, dim)
        v = linear(h, f"{layer}.self_attn.v_proj").reshape(-1, groups, dim)
        mixed = np.zeros((len(ids), heads, dim))
        for s in range(len(ids)):
            for head in range(heads):
                group = head // (heads // groups)
                query = rotate(q[s, head], s)
                scores = np.array([query @ rotate(k[t, group], t) for t in range(s + 1)]) / np.sqrt(dim)
                probabilities = np.exp(scores - scores.max())
                mixed[s, head] = probabilities / probabilities.sum() @ v[: s + 1, group]
        x = x + linear(mixed.reshape(len(ids), -1), f"{layer}.self_attn.o_proj")
        h = norm(x, f"{layer}.post_attention_layernorm")
        gate = linear(h, f"{layer}.mlp.gate_proj")
        x = x + linear(gate / (1 + np.exp(-gate)) * linear(h, f"{layer}.mlp.up_proj"), f"{layer}.mlp.down_proj")
    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    return norm(x, "model.norm") @ weights.tensor(head).astype(np.float64).T


class Session:
    """A decoder in ONNX Runtime, fed step by step."""

    def __init__(self, path: Path, config: LlamaConfig, dtype: Any = np.float32) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._names = [o.name for o in self._session.get_outputs()]
        self._empty = np.zeros((1, config.num_key_value_heads, 0, config.head_dim), dtype)
        self._layers = config.num_hidden_layers

    def __call__(
        self, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray, cache: dict[str, np.ndarray] | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the logits and the grown cache under the names of the inputs."""
        names = [f"past_key_values.{i}.{kind}" for i in range(self._layers) for kind in ("key", "value")]
        cache = cache or dict.fromkeys(names, np.repeat(self._empty, len(ids), axis=0))
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **cache}
        outputs = dict(zip(self._names, self._session.run(None, feeds), strict=True))
        logits = outputs.pop("logits")
        return logits, {k.replace("present", "past_key_values"): v for k, v in outputs.items()}


def tokens(config: LlamaConfig, *shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, config.vocab_size, shape)


def positions(mask: np.ndarray, new: int) -> np.ndarray:
    return np.maximum(mask.cumsum(-1) - 1, 0)[:, -new:]


@pytest.mark.parametrize("name", VARIANTS)
def test_prefill_equals_the_definition(tmp_path: Path, name: str) -> None:
    config = VARIANTS[name]
    weights = RandomWeights(config, 1, outliers=3)
    build_llama(config, weights, tmp_path / "m.onnx")
    ids = tokens(config, 2, 9)
    mask = np.ones_like(ids)
    logits, _ = Session(tmp_path / "m.onnx", config)(ids, mask, positions(mask, 9))
    expected = np.stack([reference(config, weights, row) for row in ids])
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(logits, expected, atol=FLOAT32_NOISE * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("chunks", [[1] * 9, [4, 1, 3, 1], [8, 1]])
def test_decoding_with_a_cache_equals_prefill(tmp_path: Path, chunks: list[int]) -> None:
    build_llama(CONFIG, RandomWeights(CONFIG, 2, outliers=3), tmp_path / "m.onnx")
    run = Session(tmp_path / "m.onnx", CONFIG)
    ids = tokens(CONFIG, 2, 9)
    mask = np.ones_like(ids)
    expected, full = run(ids, mask, positions(mask, 9))
    cache, done, pieces = None, 0, []
    for size in chunks:
        seen = mask[:, : done + size]
        piece, cache = run(ids[:, done : done + size], seen, positions(seen, size), cache)
        pieces.append(piece)
        done += size
    np.testing.assert_allclose(np.concatenate(pieces, 1), expected, atol=FLOAT32_NOISE, rtol=0)
    assert cache is not None
    for key, value in full.items():
        np.testing.assert_allclose(cache[key], value, atol=FLOAT32_NOISE, rtol=0)


def test_left_padding_changes_nothing(tmp_path: Path) -> None:
    build_llama(CONFIG, RandomWeights(CONFIG, 3, outliers=3), tmp_path / "m.onnx")
    run = Session(tmp_path / "m.onnx", CONFIG)
    ids = tokens(CONFIG, 2, 8)
    mask = np.ones_like(ids)
    mask[1, :3] = 0
    padded, cache = run(ids, mask, positions(mask, 8))
    alone = np.ones((1, 5), np.int64)
    expected, cache_alone = run(ids[1:, 3:], alone, positions(alone, 5))
    assert np.isfinite(padded).all()
    np.testing.assert_allclose(padded[1:, 3:], expected, atol=FLOAT32_NOISE, rtol=0)

    step = tokens(CONFIG, 2, 1)
    mask, alone = (np.concatenate([m, np.ones_like(m[:, :1])], 1) for m in (mask, alone))
    padded, _ = run(step, mask, positions(mask, 1), cache)
    expected, _ = run(step[1:], alone, positions(alone, 1), cache_alone)
    np.testing.assert_allclose(padded[1:], expected, atol=FLOAT32_NOISE, rtol=0)


def test_float16_stays_close_to_float32_even_where_a_row_sees_nothing(tmp_path: Path) -> None:
    weights = RandomWeights(CONFIG, 4, outliers=2)
    ids = tokens(CONFIG, 2, 8)
    mask = np.ones_like(ids)
    mask[1, :3] = 0
    results = {}
    for name, dtype in (("float32", np.float32), ("float16", np.float16)):
        build_llama(CONFIG, weights, tmp_path / f"{name}.onnx", dtype=name)
        results[name], _ = Session(tmp_path / f"{name}.onnx", CONFIG, dtype)(ids, mask, positions(mask, 8))
    assert results["float16"].dtype == np.float16
    assert np.isfinite(results["float16"]).all()
    difference = np.abs(results["float16"] - results["float32"])
    assert 0 < difference[mask == 1].max() < FLOAT16_NOISE


def test_bfloat16_stays_close_to_float32(tmp_path: Path) -> None:
    # ONNX Runtime has no bfloat16 kernels on the CPU; onnx.reference has.
    weights = RandomWeights(CONFIG, 5)
    ids = tokens(CONFIG, 2, 5)
    mask = np.ones_like(ids)
    results = []
    for name, dtype in (("float32", np.float32), ("bfloat16", ml_dtypes.bfloat16)):
        build_llama(CONFIG, weights, tmp_path / f"{name}.onnx", dtype=name)
        empty = np.zeros((2, CONFIG.num_key_value_heads, 0, CONFIG.head_dim), dtype)
        cache = {f"past_key_values.{i}.{kind}": empty for i in range(2) for kind in ("key", "value")}
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions(mask, 5), **cache}
        results.append(ReferenceEvaluator(str(tmp_path / f"{name}.onnx")).run(["logits"], feeds)[0])
    assert results[1].dtype == ml_dtypes.bfloat16
    assert 0 < np.abs(results[1].astype(np.float32) - results[0]).max() < 8 * FLOAT16_NOISE


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("opset", [17, 18, 20, 23])
def test_every_dtype_and_opset_is_a_valid_model(tmp_path: Path, dtype: str, opset: int) -> None:
    path = tmp_path / "m.onnx"
    build_llama(CONFIG, RandomWeights(CONFIG), path, dtype=dtype, opset=opset)
    onnx.checker.check_model(str(path), full_check=True)
    proto = onnx.load(path, load_external_data=False)
    assert {(o.domain, o.version) for o in proto.opset_import} == {("", opset)}
    elements = {v.type.tensor_type.elem_type for v in proto.graph.output}
    assert elements == {onnx.TensorProto.DataType.Value({"float32": "FLOAT"}.get(dtype, dtype.upper()))}


def test_ranges_begin_end_and_step_at_scalars() -> None:
    # Shape inference and ONNX Runtime let vectors of one element pass; TensorRT 8.6's parser dies of them.
    graph = llama_model(CONFIG, RandomWeights(CONFIG)).graph
    ranges = [node for node in graph.nodes if node.op == "Range"]
    assert len(ranges) == 2
    constants = [t for node in ranges for t in node.inputs if isinstance(t, gs.Constant)]
    assert len(constants) == 3
    assert all(tuple(c.shape) == () for c in constants)


def test_opsets_agree(tmp_path: Path) -> None:
    ids = tokens(CONFIG, 1, 7)
    mask = np.ones_like(ids)
    results = []
    for opset in (17, 18, 21, 23):
        build_llama(CONFIG, RandomWeights(CONFIG), tmp_path / "m.onnx", opset=opset)
        results.append(Session(tmp_path / "m.onnx", CONFIG)(ids, mask, positions(mask, 7))[0])
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_names_are_stable_and_speak() -> None:
    model = llama_model(CONFIG, RandomWeights(CONFIG))
    nodes = {n.name: n for n in model.graph.nodes}
    assert len(nodes) == len(model.graph.nodes)
    linears = [n for n in model.graph.nodes if n.op == "MatMul" and n.inputs[1].name.endswith(".weight")]
    assert len(linears) == 2 * 7 + 1
    for node in linears:
        module = node.name.removesuffix("/MatMul")
        assert node.inputs[1].name == f"{module[1:].replace('/', '.')}.weight"
        rows, columns = CONFIG.weight_shapes()[node.inputs[1].name]
        assert tuple(node.inputs[1].shape) == (columns, rows)
    again = llama_model(CONFIG, RandomWeights(CONFIG))
    assert [n.name for n in again.graph.nodes] == list(nodes)


def test_a_tied_head_stores_the_embedding_once(tmp_path: Path) -> None:
    config = replace(CONFIG, tie_word_embeddings=True)
    build_llama(config, RandomWeights(config), tmp_path / "m.onnx")
    initializers = {t.name for t in onnx.load(tmp_path / "m.onnx").graph.initializer}
    assert "lm_head.weight" not in initializers
    model = ir.load(tmp_path / "m.onnx")
    users = [n.name for n in model.graph.nodes if "model.embed_tokens.weight" in {t.name for t in n.inputs}]
    assert users == ["/model/embed_tokens/Gather", "/lm_head/Transpose"]


def test_fewer_layers_than_the_source_has(tmp_path: Path) -> None:
    cut = replace(CONFIG, num_hidden_layers=1)
    weights = RandomWeights(CONFIG)
    seen: list[tuple[int, int, str]] = []
    files = build_llama(cut, weights, tmp_path / "m.onnx", progress=lambda *step: seen.append(step))
    assert [f.name for f in files] == ["m.onnx", "m.onnx.data"]
    assert [name for _, _, name in seen] == list(cut.weight_shapes())
    assert [done for done, _, _ in seen] == list(range(1, seen[-1][1] + 1))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]


class Broken:
    """Weights of which one is not as it should be."""

    def __init__(self, name: str, change: Any) -> None:
        self.config = CONFIG
        self._good = RandomWeights(CONFIG)
        self._name, self._change = name, change

    def tensor(self, name: str) -> np.ndarray:
        values = self._good.tensor(name)
        return self._change(values) if name == self._name else values


def spoil(value: float) -> Any:
    def change(values: np.ndarray) -> np.ndarray:
        values.flat[7] = value
        return values

    return change


@pytest.mark.parametrize(
    ("change", "dtype", "culprit"),
    [
        (lambda v: v[:, :-1], "float32", r"shape \[64, 159\], but the configuration needs \[64, 160\]"),
        (spoil(np.nan), "float32", "NaN, infinite"),
        (spoil(-np.inf), "float32", "NaN, infinite"),
        (spoil(7e4), "float16", "too large values"),
        (lambda v: spoil(np.nan)(v.astype(ml_dtypes.bfloat16)), "bfloat16", "NaN, infinite"),
        (lambda v: spoil(np.inf)(v.astype(np.float16)), "float32", "NaN, infinite"),
    ],
)
def test_bad_weights_are_refused_and_nothing_is_left(tmp_path: Path, change: Any, dtype: str, culprit: str) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    with pytest.raises(ModelError, match=culprit) as error:
        build_llama(CONFIG, Broken(name, change), tmp_path / "m.onnx", dtype=dtype)
    assert name in str(error.value)
    assert not list(tmp_path.iterdir())


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    weights = RandomWeights(CONFIG)
    with pytest.raises(ModelError, match="dtype 'float61' is not supported; did you mean 'float16'"):
        llama_model(CONFIG, weights, dtype="float61")
    for opset in (16, 24):
        with pytest.raises(ModelError, match=f"opset {opset} is not supported; give 17 to 23"):
            llama_model(CONFIG, weights, opset=opset)
    with pytest.raises(OutputError, match="absent"):
        build_llama(CONFIG, weights, tmp_path / "absent" / "m.onnx")


_BUILD = """
import re, sys
from dataclasses import replace
from pathlib import Path
from graphopt.models.llama import build_llama
from graphopt.models.llama_config import LlamaConfig
from graphopt.models.weights import RandomWeights
from tests.support.decoders import CONFIG

config = LlamaConfig(256, 1024, 4096, 1, 16, 4, 64)
for layers in (1, 6):
    config = replace(config, num_hidden_layers=layers)
    files = build_llama(config, RandomWeights(config), Path(sys.argv[1]) / "m.onnx")
    # Not ru_maxrss, which starts at the memory of the parent process.
    peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
    print(int(peak) * 1024, files[1].stat().st_size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc/self/status")
def test_memory_does_not_grow_with_the_number_of_layers(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _BUILD, str(tmp_path)], capture_output=True, text=True, check=True)
    (one, small), (six, large) = (map(int, line.split()) for line in done.stdout.splitlines())
    largest = 1024 * 4096 * 4
    assert large - small > 15 * largest
    assert six - one < 2 * largest
