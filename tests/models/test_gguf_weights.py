from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from graphopt.errors import ModelError
from graphopt.models.gguf_weights import GgufWeights
from graphopt.models.llama_config import LlamaConfig
from graphopt.models.weights import RandomWeights

Q = gguf.GGMLQuantizationType
WriteGguf = Callable[..., Path]
#: Largest error over the range of a block of 32 (steps of the type, half a step by rounding, scales in float16).
ROUNDING = {Q.F32: 0.0, Q.F16: 2**-11, Q.BF16: 2**-8, Q.Q8_0: 1 / 250, Q.Q5_1: 1 / 60, Q.Q4_1: 1 / 29, Q.Q4_0: 1 / 8}


@pytest.mark.parametrize("kind", list(ROUNDING), ids=lambda q: q.name)
def test_every_tensor_comes_back_in_hugging_face_order(tiny: LlamaConfig, write_gguf: WriteGguf, kind: Q) -> None:
    source = RandomWeights(tiny, outliers=2)
    read = GgufWeights(write_gguf(tiny, source.tensor, kind))
    assert read.config == tiny
    for name, shape in tiny.weight_shapes().items():
        values, expected = read.tensor(name), source.tensor(name)
        assert values.dtype == np.float32
        assert values.shape == shape
        if values.ndim == 1:
            np.testing.assert_array_equal(values, expected)
            continue
        blocks, original = values.reshape(-1, 32), expected.reshape(-1, 32)
        span = np.ptp(original, axis=1, keepdims=True)
        assert np.all(np.abs(blocks - original) <= ROUNDING[kind] * span), name


def test_qwen2_rows_are_not_permuted(tiny: LlamaConfig, write_gguf: WriteGguf) -> None:
    source = RandomWeights(tiny)
    read = GgufWeights(write_gguf(tiny, source.tensor, architecture="qwen2"))
    name = "model.layers.0.self_attn.q_proj.weight"
    np.testing.assert_array_equal(read.tensor(name), source.tensor(name))


def test_biases_and_tying_are_seen(tiny: LlamaConfig, write_gguf: WriteGguf) -> None:
    config = replace(tiny, qkv_bias=True, tie_word_embeddings=True, rms_norm_eps=1e-6, rope_theta=1e6)
    source = RandomWeights(config)
    read = GgufWeights(write_gguf(config, source.tensor))
    assert read.config == config
    name = "model.layers.1.self_attn.k_proj.bias"
    np.testing.assert_array_equal(read.tensor(name), source.tensor(name))


@pytest.mark.parametrize("name", ["attn_q_norm.weight", "attn_k.bias", "ffn_up.bias"])
def test_norms_and_biases_that_would_be_left_out_are_refused(
    tiny: LlamaConfig, write_gguf: WriteGguf, name: str
) -> None:
    """Which biases there are is read off the first layer, so that the second's alone would go unseen."""
    ones = np.ones(64, np.float32)
    path = write_gguf(tiny, RandomWeights(tiny).tensor, edit=lambda w: w.add_tensor(f"blk.1.{name}", ones))
    with pytest.raises(ModelError, match=rf"tensor 'blk\.1\.{name}' is of no decoder"):
        GgufWeights(path)
    later = write_gguf(tiny, RandomWeights(tiny).tensor, edit=lambda w: w.add_tensor(f"blk.2.{name}", ones))
    assert GgufWeights(later).config.num_hidden_layers == 2


def test_rope_frequencies_tensor_becomes_factors(tiny: LlamaConfig, write_gguf: WriteGguf) -> None:
    factors = np.linspace(1, 8, 32, dtype=np.float32)
    path = write_gguf(tiny, RandomWeights(tiny).tensor, edit=lambda w: w.add_tensor("rope_freqs.weight", factors))
    assert GgufWeights(path).config.rope_factors == pytest.approx(factors.tolist())


@pytest.mark.parametrize("keep", [3, 100, 0.5, -1])
def test_truncated_files_are_refused(tiny: LlamaConfig, write_gguf: WriteGguf, keep: float) -> None:
    path = write_gguf(tiny, RandomWeights(tiny).tensor)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(ModelError, match=r"model\.gguf is not a GGUF file, or it is truncated or damaged"):
        GgufWeights(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        GgufWeights(tmp_path / "absent.gguf")
    (tmp_path / "text.gguf").write_text("not a model " * 50)
    with pytest.raises(ModelError, match="not a GGUF file"):
        GgufWeights(tmp_path / "text.gguf")
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(ModelError, match="not a GGUF file"):
        GgufWeights(tmp_path / "empty.gguf")


@pytest.mark.parametrize(
    ("edit", "culprit"),
    [
        (lambda w: w.add_expert_count(8), "mixture-of-experts"),
        (lambda w: w.add_rope_dimension_count(32), "part of the head"),
        (lambda w: w.add_value_length(32), "different head sizes"),
        (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN), "rotary scaling 'yarn'"),
        (lambda w: w.add_head_count_kv([2, 4]), "differs between layers"),
    ],
)
def test_features_that_the_decoder_lacks_are_refused(
    tiny: LlamaConfig, write_gguf: WriteGguf, edit: Callable[[gguf.GGUFWriter], None], culprit: str
) -> None:
    with pytest.raises(ModelError, match=culprit):
        GgufWeights(write_gguf(tiny, RandomWeights(tiny).tensor, edit=edit))


def test_missing_parts_are_named(tiny: LlamaConfig, write_gguf: WriteGguf) -> None:
    tensor = RandomWeights(tiny).tensor
    with pytest.raises(ModelError, match="architecture 'gpt2' is not supported"):
        GgufWeights(write_gguf(tiny, tensor, architecture="gpt2"))
    with pytest.raises(ModelError, match=r"'llama\.attention\.layer_norm_rms_epsilon' is missing"):
        GgufWeights(write_gguf(tiny, tensor, omit=frozenset({"rms"})))
    with pytest.raises(ModelError, match="vocabulary-only"):
        GgufWeights(write_gguf(tiny, tensor, omit=frozenset({"model.embed_tokens.weight"})))
    read = GgufWeights(write_gguf(tiny, tensor, omit=frozenset({"model.norm.weight"})))
    with pytest.raises(ModelError, match=r"no tensor for 'model\.norm\.weight'"):
        read.tensor("model.norm.weight")


def test_types_that_cannot_be_dequantized_are_named(tiny: LlamaConfig, write_gguf: WriteGguf) -> None:
    integers = np.arange(32, dtype=np.int32)
    path = write_gguf(
        tiny,
        RandomWeights(tiny).tensor,
        omit=frozenset({"model.norm.weight"}),
        edit=lambda w: w.add_tensor("output_norm.weight", integers),
    )
    with pytest.raises(ModelError, match=r"'output_norm\.weight' has type I32"):
        GgufWeights(path).tensor("model.norm.weight")
