"""Deterministic text of a model, for goldens, ``--dump-ir`` and diffs: one node a line, weights by dtype and shape."""

__all__ = ["dump"]

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.ir import weights
from graphopt.ir.model import Model

#: Constants up to this many elements are printed with their values.
_SHOWN = 8


def dump(model: Model) -> str:
    """Return the main graph and its subgraphs as text; the same model always gives the same text."""
    domains = ", ".join(
        f"{o.domain or 'onnx'} {o.version}" for o in sorted(model.graph.import_domains, key=lambda o: o.domain)
    )
    lines = [f"opset {domains}", *_graph(model.graph, "")]
    lines += [f"function {f.domain}.{f.name}({', '.join(f.input)}) -> ({', '.join(f.output)})" for f in model.functions]
    return "\n".join(lines) + "\n"


def _graph(graph: gs.Graph, indent: str) -> Iterator[str]:
    inputs, outputs = (", ".join(_typed(t) for t in tensors) for tensors in (graph.inputs, graph.outputs))
    yield f"{indent}graph({inputs}) -> ({outputs})"
    for node in graph.nodes:
        op = node.op if node.domain in (None, "", "ai.onnx") else f"{node.domain}.{node.op}"
        outputs = ", ".join(f"%{t.name}" if t.name else "_" for t in node.outputs)
        inputs = ", ".join(_operand(t) for t in node.inputs)
        plain = {k: v for k, v in node.attrs.items() if not isinstance(v, gs.Graph)}
        attrs = "".join(f" {k}={_attribute(v)}" for k, v in sorted(plain.items()))
        yield f"{indent}  {outputs} = {op}({inputs}){attrs}"
        for name, sub in sorted((k, v) for k, v in node.attrs.items() if isinstance(v, gs.Graph)):
            yield f"{indent}    {name}:"
            yield from _graph(sub, indent + "    ")


def _dtype(dtype: Any) -> str:
    if dtype is None:
        return "?"
    name = str(onnx.TensorProto.DataType.Name(weights.onnx_dtype(dtype)))
    return {"FLOAT": "f32", "FLOAT16": "f16", "BFLOAT16": "bf16", "DOUBLE": "f64"}.get(name, name.lower())


def _typed(tensor: gs.Tensor) -> str:
    shape = "?" if tensor.shape is None else "x".join("?" if d is None else str(d) for d in tensor.shape)
    return f"%{tensor.name}: {_dtype(tensor.dtype)}[{shape}]"


def _operand(tensor: gs.Tensor) -> str:
    if not isinstance(tensor, gs.Constant):
        return f"%{tensor.name}" if tensor.name else "_"
    return _constant(tensor)


def _constant(tensor: gs.Constant) -> str:
    shape = "x".join(map(str, tensor.shape))
    count = int(np.prod(tensor.shape, dtype=np.int64))
    if count <= _SHOWN:
        values = ", ".join(
            f"{v:.7g}" if isinstance(v, float) else str(v) for v in weights.read(tensor).reshape(-1).tolist()
        )
        return f"{_dtype(tensor.dtype)}[{shape}]{{{values}}}"
    return f"@{tensor.name}: {_dtype(tensor.dtype)}[{shape}]"


def _attribute(value: Any) -> str:
    if isinstance(value, gs.Constant):
        return _constant(value)
    return f"{value:.7g}" if isinstance(value, float) else repr(value)
