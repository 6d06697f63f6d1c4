"""Prove that a checkpoint is its graph: run both on some tokens and compare the logits.

The decoder that the package computes is written here in numpy, with the evaluators of its ops. The graph runs in ONNX
Runtime. What the way through the graph cannot see shows here: the order of q, k and v, the scale and the rotary angles
of the attention. Positions are spread over the context where the model takes them as an input, so that a wrong rotary
scaling of slow frequencies shows too. Tokens are random and the median of their differences counts: far from any text,
a few fall over by rounding alone.
"""

__all__ = ["compare", "logits"]

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from graphopt.calibrate.feeds import from_tokens
from graphopt.deploy.tensorrt_llm.network import Linear, Network
from graphopt.errors import DeployError, GraphOptError
from graphopt.ir import weights
from graphopt.models.llama_config import LlamaConfig
from graphopt.numerics import layers
from graphopt.numerics.packing import unpack_int4
from graphopt.passes.mixq import numerics
from graphopt.runners.decoder import LOGITS
from graphopt.runners.host import ort_runner, reference_runner

#: ||a - b|| / ||b|| of a token's logits that is allowed in any case.
TOLERANCE = 5e-3
#: A code that falls on the other side of a rounding boundary moves others in every layer behind it. How far that goes
#: is tried: the embedding is disturbed in its last bits, and graph and checkpoint may differ by this many times what
#: that makes. SmolLM2's differ by once that at most; a rotary base that is twice too large makes ten times that.
DISTURBANCES = 2.0
#: Last bits, at least: in float32 they would not reach a boundary with so few tokens.
_SMALLEST = 2.0**-12
_TOKENS = 24
_POSITIONS = "position_ids"

Array = npt.NDArray[Any]


def compare(path: Path, network: Network, config: LlamaConfig) -> float:
    """Return the median over some tokens of ||a - b|| / ||b||, logits a of the checkpoint and b of the graph.

    Args:
        path: of the graph.
        network, config: of the checkpoint.

    Raises:
        DeployError: it is more than `TOLERANCE` and `DISTURBANCES` explain, or the graph cannot be run here.
    """
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, _TOKENS)
    dtype = weights.numpy_dtype(weights.onnx_dtype(network.embedding.dtype)).name
    # ONNX Runtime has no bfloat16 on the CPU.
    open_runner = reference_runner if dtype == "bfloat16" else ort_runner
    try:
        with open_runner(path) as runner:
            feeds = from_tokens(runner.inputs, tokens[None])
            positions = np.arange(_TOKENS)
            if _POSITIONS in feeds:
                positions = positions * max(1, (config.max_position_embeddings - 1) // (_TOKENS - 1))
                feeds[_POSITIONS] = positions.astype(feeds[_POSITIONS].dtype)[None]
            wanted = runner.infer(feeds, [LOGITS])[LOGITS][0]
    except GraphOptError as e:
        raise DeployError(
            f"{path} cannot be compared with its checkpoint here ({e}); --no-verify leaves that out"
        ) from e
    got = logits(network, config, tokens, positions)
    disturbed = logits(network, config, tokens, positions, disturb=_last_bits(dtype))
    error, bound = _distance(got, wanted), TOLERANCE + DISTURBANCES * _distance(got, disturbed)
    if not error <= bound:
        raise DeployError(
            f"{path} computes other logits than a decoder with its weights and the configuration (they differ by "
            f"{error:.1%}, and by up to {bound:.1%} by rounding alone); give the model's own config.json with --config"
        )
    return error


def _last_bits(dtype: str) -> float:
    return max(_SMALLEST, float(ml_dtypes.finfo(dtype).eps))  # type: ignore[no-untyped-call]


def _distance(a: Array, b: Array) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.median(np.linalg.norm(a - b, axis=-1) / np.linalg.norm(b, axis=-1)))


def logits(network: Network, config: LlamaConfig, tokens: Array, positions: Array, *, disturb: float = 0.0) -> Array:
    """Return the logits (tokens, vocabulary) T of one sequence.

    Args:
        network, config: of the checkpoint.
        tokens: (S,) integers.
        positions: (S,) integers, for the rotary angles only; causal in their order.
        disturb: standard deviation of what the embedding is multiplied with, beside 1.
    """
    angles = positions[:, None].astype(np.float32) * np.array(config.inverse_frequencies(), np.float32)
    angles = np.concatenate([angles, angles], axis=-1)
    x = np.asarray(weights.read(network.embedding)[tokens])
    if disturb:
        noise = np.random.default_rng(1).normal(1.0, disturb, x.shape)
        x = (x.astype(np.float32) * noise.astype(np.float32)).astype(x.dtype)
    rotation = np.cos(angles).astype(x.dtype), np.sin(angles).astype(x.dtype)
    for i in range(network.layers):
        x = _layer(network, config, f"model.layers.{i}", x, rotation)
    norm = layers.rms_norm(x, weights.read(network.norms["model.norm"]), config.rms_norm_eps)
    if network.head is None:
        return _linear(network.linears["lm_head"], norm)
    head = weights.read(network.head)
    return layers.linear(norm, head.T if network.head_transposed else head)


def _layer(network: Network, config: LlamaConfig, prefix: str, x: Array, rotation: tuple[Array, Array]) -> Array:
    def linear(name: str, value: Array) -> Array:
        return _linear(network.linears[f"{prefix}.{name}"], value)

    def norm(name: str, value: Array) -> Array:
        return layers.rms_norm(value, weights.read(network.norms[f"{prefix}.{name}"]), config.rms_norm_eps)

    def heads(value: Array) -> Array:
        """(S, heads D) -> (1, heads, S, D)."""
        return value.reshape(1, len(value), -1, config.head_dim).transpose(0, 2, 1, 3)

    h = norm("input_layernorm", x)
    q, k, v = (heads(linear(f"self_attn.{name}", h)) for name in ("q_proj", "k_proj", "v_proj"))
    q, k = layers.rotary(q, *rotation), layers.rotary(k, *rotation)
    order = np.arange(len(x))
    mask = np.where(order <= order[:, None], np.float32(0), np.float32(-np.inf))[None, None]
    y = layers.attention(q, k, v, mask, 1 / math.sqrt(config.head_dim))
    x = _add(x, linear("self_attn.o_proj", y.transpose(0, 2, 1, 3).reshape(len(x), -1)))
    h = norm("post_attention_layernorm", x)
    h = layers.gated(layers.silu, linear("mlp.gate_proj", h), linear("mlp.up_proj", h))
    return _add(x, linear("mlp.down_proj", h))


def _add(a: Array, b: Array) -> Array:
    return (a.astype(np.float32) + b.astype(np.float32)).astype(a.dtype)


def _linear(linear: Linear, x: Array) -> Array:
    quantized = numerics.quantize_rows(x, weights.read(linear.quantizer.idx))
    operands = {name: operand.read() for name, operand in linear.tensors.items()}
    if linear.bits == 4:
        codes = unpack_int4(operands.pop("wq4"), x.shape[-1])
        operands = {"wq": numerics.grouped_codes(codes, operands.pop("sg"), linear.group), **operands}
    return numerics.linear(*quantized, **operands)
