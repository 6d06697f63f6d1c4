"""What a damaged file would make of a custom op: constants that its definition gives no meaning to."""

__all__ = ["check_constants"]

from collections.abc import Iterable

import onnx_graphsurgeon as gs

from graphopt.core.op import OpSpec, custom_nodes
from graphopt.errors import ModelError
from graphopt.ir import weights
from graphopt.ir.model import Model


def check_constants(model: Model, specs: Iterable[OpSpec]) -> None:
    """Check the constant inputs of every custom op by its `OpSpec.damage`; they are read through memory maps.

    Raises:
        ModelError: a tensor, which is named, holds what cannot have been written.
    """
    known = {spec.name: spec for spec in specs if spec.damage is not None}
    for node in custom_nodes(model):
        spec = known.get(node.op)
        if spec is None or spec.damage is None:
            continue
        tensors = {p.name: t for p, t in zip(spec.inputs, node.inputs, strict=False)}
        constants = {name: weights.read(t) for name, t in tensors.items() if isinstance(t, gs.Constant)}
        if found := spec.damage(constants, dict(node.attrs)):
            tensor, where = tensors[found[0]], f"'{node.name}' ({node.op})"
            raise ModelError(f"tensor '{tensor.name}' of {where} {found[1]}; the file is damaged, make it again")
