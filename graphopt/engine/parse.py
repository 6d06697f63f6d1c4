"""ONNX file -> TensorRT network, and the check that our ops became plugins rather than their bodies."""

__all__ = ["count_plugin_layers", "missing_plugins", "parse"]

import re
from pathlib import Path
from typing import Any

import onnx
from onnx import inliner

from graphopt.engine import tensorrt8
from graphopt.engine.flavour import Flavour
from graphopt.engine.messages import brief
from graphopt.engine.plugins import NAMESPACE, PluginLibrary
from graphopt.engine.source import CustomOps
from graphopt.errors import EngineError

#: What an importer's assertion says when it has nothing to say.
_EMPTY_REASONS = ("", "false")
_LISTED = 3


def missing_plugins(
    flavour: Flavour, wanted: CustomOps, library: PluginLibrary | None, native_fallback: bool
) -> frozenset[str]:
    """Return the ops of ``wanted`` for which ``library`` has no plugin, so that their bodies have to be imported.

    Raises:
        EngineError: there are some and not ``native_fallback``; names them.
    """
    missing = frozenset(wanted.counts) - frozenset(library.creators if library else ())
    if not missing or native_fallback:
        return missing
    source = f"{library.path} has no plugin" if library else "no plugin library is loaded"
    raise EngineError(
        f"{source} for {_listed(sorted(missing), wanted)}; build the plugin library again, "
        "or pass --native-fallback to run their bodies in standard ops"
    )


def parse(
    flavour: Flavour, builder: Any, path: Path, inline: frozenset[str] = frozenset()
) -> tuple[Any, Any, tuple[str, ...]]:
    """Return the network of the ONNX file ``path``, the parser, which owns the network's weights, and what was changed.

    Args:
        flavour: the TensorRT in use.
        builder: its IBuilder.
        path: the ONNX file; its external data lies beside it.
        inline: ops of our domain whose nodes are replaced by their bodies.

    Raises:
        EngineError: the parser refused; the message names the node.
    """
    network = flavour.network(builder)
    parser = flavour.trt.OnnxParser(network, flavour.logger)
    changes: tuple[str, ...] = ()
    with flavour.messages.record() as record:
        if not flavour.modern:
            prepared = tensorrt8.prepare(_expanded(path, inline))
            changes = prepared.changes
            if ok := parser.parse(_bytes(prepared.proto), path=str(path)):
                tensorrt8.refine(flavour.trt, network, prepared.float32)
        elif inline:
            ok = parser.parse(_bytes(_expanded(path, inline)), path=str(path))
        else:
            ok = parser.parse_from_file(str(path))
    if not ok:
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        if not errors:
            raise EngineError(f"{flavour} cannot read {path}: {record.reason()}")
        raise EngineError(_sentence(flavour, path, errors[-1]))
    if not network.num_layers:
        raise EngineError(f"{path}: {flavour} found no layers in this model")
    return network, parser, changes


def count_plugin_layers(flavour: Flavour, network: Any, wanted: CustomOps, inlined: frozenset[str]) -> int:
    """Return the number of plugin layers; the parser says nothing when it imports a node's body in place of its plugin.

    Raises:
        EngineError: there are fewer than nodes of ``wanted`` that are not of ``inlined`` ops.
    """
    layers = [network.get_layer(i).type for i in range(network.num_layers)].count(flavour.plugin_layer)
    expected = {op: n for op, n in wanted.counts.items() if op not in inlined}
    total = sum(expected.values())
    if layers < total:
        raise EngineError(
            f"only {layers} of {total} custom nodes became plugin layers: {flavour} imported the bodies "
            f"of others among {_listed(sorted(expected), wanted)}; use a plugin library built for this TensorRT"
        )
    return layers


def _expanded(path: Path, inline: frozenset[str]) -> onnx.ModelProto:
    """The model, without its external data, with the functions of ``inline`` expanded.

    We expand them because the parser of TensorRT-RTX 1.7.1 does not give the layers of each call names of their own: a
    body with a QuantizeLinear that is called twice fails to parse.
    """
    proto = onnx.load(path, load_external_data=False)
    if inline:
        proto = inliner.inline_selected_functions(proto, [(NAMESPACE, op) for op in sorted(inline)])
    return proto


def _bytes(proto: onnx.ModelProto) -> bytes:
    return bytes(proto.SerializeToString())


def _sentence(flavour: Flavour, path: Path, error: Any) -> str:
    """One sentence that names the node; TensorRT 8 knows its number only."""

    def ask(attribute: str) -> Any:
        return getattr(error, attribute, lambda: "")()

    op, name, index = ask("node_operator"), ask("node_name"), error.node()
    description = brief(re.sub(r"^Invalid Node - .*\n", "", error.desc()))
    if not op and index < 0:
        return f"{flavour} cannot read {path}: {description}"
    where = f"node '{name}' ({op})" if op else f"node number {index}"
    stack = ask("local_function_stack") if getattr(error, "local_function_stack_size", lambda: 0)() else ()
    if stack:
        where += f", inside the function body of {stack[0]}"
    if "Plugin not found" in description:
        return (
            f"{path}: {flavour} knows no op or plugin '{op}' ({where}); rewrite it into standard ops, "
            "or name the library that has its plugin with --plugins"
        )
    if description in _EMPTY_REASONS:
        return f"{path}: {flavour} does not support op '{op}' ({where}); rewrite it into other standard ops"
    return f"{path}: {flavour} refused {where}: {description}"


def _listed(ops: list[str], wanted: CustomOps) -> str:
    shown = [f"{op} ({_count(wanted.counts[op], 'node')}, such as '{wanted.example[op]}')" for op in ops[:_LISTED]]
    rest = len(ops) - _LISTED
    return ", ".join(shown) + (f" and {_count(rest, 'more op')}" if rest > 0 else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
