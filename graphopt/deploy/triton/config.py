"""config.pbtxt of both models of a repository, as messages of Triton's own protobuf."""

__all__ = [
    "PLAN", "EngineShape", "engine_config", "generate_config", "kind_name", "parse", "plan_file", "state_bytes",
    "to_text", "triton_type",
]  # fmt: skip

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from graphopt.deploy.triton.request import FIELDS, RESULTS, Field
from graphopt.deploy.triton.settings import GenerateSettings
from graphopt.engine.manifest import Manifest, Tensor
from graphopt.errors import DeployError

#: File name of the plan for every GPU that has none of its own.
PLAN = "model.plan"
#: TensorRT's name of an element type -> Triton's. Triton passes no FP8 and nothing of 4 bits through an engine.
_TYPES = {
    "FLOAT": "TYPE_FP32", "HALF": "TYPE_FP16", "BF16": "TYPE_BF16", "INT8": "TYPE_INT8", "UINT8": "TYPE_UINT8",
    "INT32": "TYPE_INT32", "INT64": "TYPE_INT64", "BOOL": "TYPE_BOOL",
}  # fmt: skip
#: Triton's name of an element type -> its bytes.
_BYTES = {
    "TYPE_FP32": 4, "TYPE_FP16": 2, "TYPE_BF16": 2, "TYPE_INT8": 1, "TYPE_UINT8": 1, "TYPE_INT32": 4, "TYPE_INT64": 8,
    "TYPE_BOOL": 1,
}  # fmt: skip
#: A sequence that is silent for so long loses its cache to another one.
_IDLE_MICROSECONDS = 60_000_000
#: How long a step waits for steps of other sequences, to go with them.
_GATHER_MICROSECONDS = 200


@dataclass(frozen=True)
class EngineShape:
    """How Triton cuts requests for an engine.

    Attributes:
        max_batch: most sequences or samples in a batch; 0 if requests bring their batch axis themselves.
        streams: sequences whose state is kept at the same time; 0 for an engine without state.
    """

    max_batch: int
    streams: int = 0


def triton_type(tensor: Tensor) -> str:
    """Return Triton's name of a tensor's type.

    Raises:
        DeployError: Triton's TensorRT backend has none.
    """
    if tensor.dtype not in _TYPES:
        raise DeployError(f"tensor '{tensor.name}' has type {tensor.dtype}, which Triton does not pass to engines")
    return _TYPES[tensor.dtype]


def plan_file(target: str) -> str:
    """Return the file name of the plan for a compute capability.

    >>> plan_file("9.0")
    'model_sm90.plan'

    Raises:
        DeployError: it is none.
    """
    if not re.fullmatch(r"\d{1,3}\.\d", target):
        raise DeployError(f"'{target}' is no compute capability such as 9.0")
    return f"model_sm{target.replace('.', '')}.plan"


def engine_config(name: str, manifest: Manifest, shape: EngineShape, targets: Sequence[str] = ()) -> Any:
    """Return the configuration of a plan in Triton's TensorRT backend.

    Args:
        name: of the model.
        manifest: of the plan.
        shape: how requests are cut.
        targets: compute capabilities with a plan of their own.

    Raises:
        DeployError: a tensor has a type that Triton does not pass, or no batch axis although there is a batch.
    """
    states = dict(manifest.cache.pairs) if manifest.cache and shape.streams else {}
    outputs = {t.name: t for t in manifest.outputs}
    fields: dict[str, Any] = {
        "name": name,
        "platform": "tensorrt_plan",
        "max_batch_size": shape.max_batch,
        "default_model_filename": PLAN,
        "cc_model_filenames": {target: plan_file(target) for target in targets},
        "input": [_port(t, shape) for t in manifest.inputs if t.name not in states],
        "output": [_port(t, shape) for t in manifest.outputs if t.name not in states.values()],
        "instance_group": [_instances(manifest)],
    }
    if states:
        fields["sequence_batching"] = {
            "max_sequence_idle_microseconds": _IDLE_MICROSECONDS,
            "oldest": {
                "max_candidate_sequences": shape.streams,
                "max_queue_delay_microseconds": _GATHER_MICROSECONDS,
            },
            "state": [_state(t, outputs[states[t.name]], manifest, shape) for t in manifest.inputs if t.name in states],
        }
    else:
        fields["optimization"] = {"cuda": {"graphs": _is_fixed(manifest, shape)}}
        fields["model_warmup"] = [_warmup(manifest, shape)]
        if shape.max_batch > 1:
            fields["dynamic_batching"] = {}
    return _message(fields)


def state_bytes(config: Any) -> int:
    """Return the bytes on the device that the states of all sequences of an engine model take.

    Twice: where the backend does not let input and output share a buffer, there are two.
    """
    sequences = config.sequence_batching
    sizes = (prod(s.dims) * _BYTES[kind_name(config, s.data_type)] for s in sequences.state)
    return 2 * sequences.oldest.max_candidate_sequences * sum(sizes)


def kind_name(config: Any, number: int) -> str:
    """Return the name of an element type, such as TYPE_INT8, that a configuration holds as a number."""
    return str(type(config).DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_number[number].name)


def generate_config(name: str, settings: GenerateSettings) -> Any:
    """Return the configuration of a generate model."""
    return _message(
        {
            "name": name,
            "backend": "python",
            "max_batch_size": 0,
            "model_transaction_policy": {"decoupled": True},
            "input": [_field(f) | {"optional": f.optional} for f in FIELDS],
            "output": [_field(f) for f in RESULTS],
            # One process; its streams are threads. TensorRT finds the GPU itself.
            "instance_group": [{"kind": "KIND_CPU", "count": 1}],
            "parameters": {k: {"string_value": v} for k, v in settings.to_parameters().items()},
        }
    )


def _field(field: Field) -> dict[str, Any]:
    return {"name": field.name, "data_type": field.kind, "dims": list(field.dims)}


def _port(tensor: Tensor, shape: EngineShape) -> dict[str, Any]:
    dims = _dims(tensor, shape)
    entry = {"name": tensor.name, "data_type": triton_type(tensor), "dims": dims or [1]}
    # Triton has no tensors without axes; (B,) of the engine is (B, 1) of a request.
    return entry if dims else entry | {"reshape": {"shape": []}}


def _dims(tensor: Tensor, shape: EngineShape) -> list[int]:
    if not shape.max_batch:
        return list(tensor.shape)
    if not tensor.shape or tensor.shape[0] >= 0:
        raise DeployError(
            f"'{tensor.name}' has no dynamic first axis, so Triton cannot make batches; give --max-batch 0"
        )
    return list(tensor.shape[1:])


def _state(past: Tensor, present: Tensor, manifest: Manifest, shape: EngineShape) -> dict[str, Any]:
    """One tensor of the cache, at the capacity that the plan takes at most."""
    largest = _largest(past, manifest)
    dims = [size if size >= 0 else largest[axis] for axis, size in enumerate(past.shape)][1 if shape.max_batch else 0 :]
    return {
        "input_name": past.name,
        "output_name": present.name,
        "data_type": triton_type(past),
        "dims": dims,
        # Rows beyond `start` are never read, but Triton wants a beginning.
        "initial_state": [
            {"name": f"empty {past.name}", "data_type": triton_type(past), "dims": dims, "zero_data": True}
        ],
        "use_same_buffer_for_input_output": True,
    }


def _largest(tensor: Tensor, manifest: Manifest) -> tuple[int, ...]:
    found = [p.ranges[tensor.name].max for p in manifest.profiles if tensor.name in p.ranges]
    return tuple(map(max, *found)) if len(found) > 1 else found[0] if found else tensor.shape


def _instances(manifest: Manifest) -> dict[str, Any]:
    group: dict[str, Any] = {"kind": "KIND_GPU", "count": 1}
    if len(manifest.profiles) > 1:
        group["profile"] = [str(i) for i in range(len(manifest.profiles))]
    return group


def _is_fixed(manifest: Manifest, shape: EngineShape) -> bool:
    """Whether only the batch varies, so that Triton can capture a CUDA graph for every size of it."""
    return all(d >= 0 for t in manifest.inputs for d in _dims(t, shape))


def _warmup(manifest: Manifest, shape: EngineShape) -> dict[str, Any]:
    inputs = {}
    for tensor in manifest.inputs:
        sizes = next((p.ranges[tensor.name].opt for p in manifest.profiles if tensor.name in p.ranges), tensor.shape)
        dims = list(sizes[1:] if shape.max_batch else sizes) or [1]
        inputs[tensor.name] = {"data_type": triton_type(tensor), "dims": dims, "zero_data": True}
    return {"name": "usual shapes", "batch_size": min(1, shape.max_batch), "inputs": inputs}


def _proto() -> Any:
    try:
        from tritonclient.grpc import model_config_pb2
    except ImportError as e:
        raise DeployError(
            "Triton's configurations need the package tritonclient; install it with: pip install 'graphopt[triton]'"
        ) from e
    return model_config_pb2


def _message(fields: Mapping[str, Any]) -> Any:
    from google.protobuf import json_format

    return json_format.ParseDict(dict(fields), _proto().ModelConfig())


def to_text(config: Any) -> str:
    """Return a configuration as the text of a config.pbtxt."""
    from google.protobuf import text_format

    return str(text_format.MessageToString(config))


def parse(text: str, where: str) -> Any:
    """Read a config.pbtxt.

    Raises:
        DeployError: it is none; the message has line and column.
    """
    from google.protobuf import text_format

    try:
        return text_format.Parse(text, _proto().ModelConfig())
    except text_format.ParseError as e:
        raise DeployError(f"{where} is no model configuration of Triton: {e}") from e
