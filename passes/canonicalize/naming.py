"""Names of canonical nodes: what recipes match and reports show.

A canonical node keeps the name of the node that gave its main output. torch's dynamo exporter calls its nodes
``node_linear_3`` and keeps the module path in metadata; there the path is the name. The module path of a linear or a
norm *is* that layer; other ops share their module with their neighbours and get their own name behind it.

`tell_apart` comes first: recipes and statistics call a linear by the name of its node, so no two nodes may share one.
"""

__all__ = ["canonical_name", "module_path", "tell_apart"]

import ast

import onnx_graphsurgeon as gs

from graphopt.core.report import Report
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


def tell_apart(model: Model, report: Report) -> None:
    """Give every node after the first of its name another one, in every scope. ONNX Runtime loads no such file, others
    do; which of its linears a name meant would be left to chance."""
    seen: set[str] = set()
    renamed: dict[str, list[str]] = {}
    for graph in model.all_graphs():
        for node in graph.nodes:
            if node.name in seen:
                name, node.name = node.name, model.unique_name(node.name)
                renamed.setdefault(name, []).append(node.name)
            elif node.name:
                seen.add(node.name)
    for name, others in renamed.items():
        listed = f"'{others[0]}'" if len(others) == 1 else f"'{others[0]}' to '{others[-1]}'"
        report.note("names", "names", name, f"{len(others) + 1} nodes have this name; the others are called {listed}")
