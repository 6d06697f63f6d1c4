"""The matrix products of a decoder, by shape: no weights are needed."""

__all__ = ["DECODERS", "Attention", "Linear", "Workload"]

from dataclasses import dataclass
from importlib.resources import files

import onnx_graphsurgeon as gs
import yaml

from graphopt.core.canonical import linears
from graphopt.core.op import DOMAIN
from graphopt.errors import ModelError
from graphopt.ir import query
from graphopt.ir.model import Model


@dataclass(frozen=True)
class Linear:
    """y = x Wᵀ with W (n, k)."""

    name: str
    n: int
    k: int


@dataclass(frozen=True)
class Attention:
    """softmax(q kᵀ) v of one layer.

    Attributes:
        heads: of queries; a multiple of ``kv_heads``.
        kv_heads: of keys and values.
        key_size: channels of a head of q and k.
        value_size: channels of a head of v.
    """

    name: str
    heads: int
    kv_heads: int
    key_size: int
    value_size: int


@dataclass(frozen=True)
class Workload:
    """Every product whose cost the estimate counts."""

    linears: tuple[Linear, ...]
    attention: tuple[Attention, ...]

    @classmethod
    def of_model(cls, model: Model) -> "Workload":
        """Return the workload of a canonical model (`graphopt.compile.canonicalize`).

        Raises:
            ModelError: it has no linears, or the sizes of an attention are not in the model.
        """
        found = tuple(Linear(view.name, *view.shape) for view in linears(model))
        if not found:
            raise ModelError("the model has no linears to estimate; give the model as exported, before optimize")
        nodes = [n for n in model.graph.nodes if query.is_op(n, "Attention", domain=DOMAIN)]
        return cls(found, tuple(_attention(node) for node in nodes))

    @classmethod
    def of_decoder(
        cls,
        *,
        hidden: int,
        layers: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        ffn: int,
        vocabulary: int,
        gated: bool,
    ) -> "Workload":
        """Return the workload of a decoder from its sizes.

        Args:
            hidden: width of the residual stream.
            layers: decoder layers.
            heads, kv_heads, head_dim: of attention.
            ffn: width of the MLP.
            vocabulary: rows of the head.
            gated: Llama's MLP of three linears; else OPT's of two.
        """
        queries, keys = heads * head_dim, kv_heads * head_dim
        output = "o_proj" if gated else "out_proj"
        block = [
            ("q_proj", queries, hidden),
            ("k_proj", keys, hidden),
            ("v_proj", keys, hidden),
            (output, hidden, queries),
        ]
        if gated:
            block += [("gate_proj", ffn, hidden), ("up_proj", ffn, hidden), ("down_proj", hidden, ffn)]
        else:
            block += [("fc1", ffn, hidden), ("fc2", hidden, ffn)]
        found = [Linear(f"layers.{i}.{name}", n, k) for i in range(layers) for name, n, k in block]
        attention = [Attention(f"layers.{i}.attention", heads, kv_heads, head_dim, head_dim) for i in range(layers)]
        return cls((*found, Linear("lm_head", vocabulary, hidden)), tuple(attention))


def _attention(node: gs.Node) -> Attention:
    """Return the sizes of a canonical Attention(q, k, v, mask)."""
    q, k, v = node.inputs[:3]
    key_size, value_size = _channels(q, k), _channels(v, node.outputs[0])
    heads, kv_heads = (_heads(t, key_size) for t in (q, k))
    if 0 in (key_size, value_size, heads, kv_heads):
        shapes = ", ".join(str(list(t.shape or [])) for t in (q, k, v))
        raise ModelError(f"the heads of attention '{node.name}' have no fixed sizes (q, k, v: {shapes})")
    return Attention(str(node.name), heads, kv_heads, key_size, value_size)


def _channels(*tensors: gs.Tensor) -> int:
    """Return the first fixed last dimension of the tensors; 0 if there is none."""
    return next((t.shape[-1] for t in tensors if t.shape and isinstance(t.shape[-1], int)), 0)


def _heads(tensor: gs.Tensor, size: int) -> int:
    """Return how many heads of ``size`` channels ``tensor`` (B, H, L, size) has; 0 if that is not in the model.

    Exporters that reshape with computed shapes leave H open; then it is sought in what the tensor was reshaped from,
    (B, L, H size).
    """
    waiting = [tensor] if size else []
    for current in waiting:
        shape = list(current.shape or [])
        if len(shape) == 4 and isinstance(shape[1], int):
            return shape[1]
        if len(shape) == 3 and isinstance(shape[-1], int) and shape[-1] % size == 0:
            return shape[-1] // size
        producer = query.producer(current)
        if producer is not None:
            varying = [t for t in producer.inputs if isinstance(t, gs.Variable)]
            waiting += varying if producer.op == "Concat" else varying[:1]
    return 0


#: Sizes of decoders that `graphopt model` cannot build (decoders.yaml), as `Workload.of_decoder` takes them.
DECODERS: dict[str, dict[str, int | bool]] = yaml.safe_load(files(__package__).joinpath("decoders.yaml").read_text())
