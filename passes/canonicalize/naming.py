"""Names of canonical nodes: what recipes match and reports show.

A canonical node keeps the name of the node that gave its main output. torch's dynamo exporter calls its nodes
``node_linear_3`` and keeps the module path in metadata; there the path is the name. The module path of a linear or a
norm *is* that layer; other ops share their module with their neighbours and get their own name behind it.
"""

__all__ = ["canonical_name", "module_path"]

import ast

import onnx_graphsurgeon as gs

from graphopt.ir.model import Model

#: Metadata in which torch's dynamo exporter keeps the module paths around a node, outermost first, then the node's own.
_SCOPES = "pkg.torch.onnx.name_scopes"


def module_path(node: gs.Node) -> str | None:
    """Return the path of the innermost module that holds ``node``, such as ``model.layers.0.mlp.up_proj``, if known."""
    text = getattr(node, "metadata", {}).get(_SCOPES)
    if not text:
        return None
    try:
        scopes = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return None
    return str(scopes[-2]) if isinstance(scopes, list) and len(scopes) >= 2 and scopes[-2] else None


def canonical_name(model: Model, node: gs.Node, suffix: str = "") -> str:
    """Return the name of the canonical node that replaces ``node``.

    Args:
        model: in which the name is to be unique.
        node: the node that gives the main output.
        suffix: what the op is called behind the path of a module that holds more than it.
    """
    path = module_path(node)
    if path is not None:
        return model.unique_name(f"{path}.{suffix}" if suffix else path)
    return str(node.name) or model.unique_name(f"{node.outputs[0].name}_{node.op}" if node.outputs else node.op)
