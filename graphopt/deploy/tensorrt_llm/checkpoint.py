"""A checkpoint of packed tensors: ``model.safetensors``, ``config.json``, ``hf_quant_config.json``.

Tensors have the names that the model has on the Hugging Face hub, with the operands of a linear in place of its weight:

    model.layers.0.self_attn.q_proj.wq, .sw, .wo, .bias       8 bits (.wq4 and .sg in place of .wq: 4 bits)
    model.layers.0.input_layernorm.weight, .idx               gamma, and the outlier channels of what it quantizes
    model.layers.0.self_attn.o_proj.idx, mlp.down_proj.idx    those of the attention's output and the gated activation
"""

__all__ = ["ARCHITECTURE", "check_config", "config_of", "quant_config", "tensors_of", "write_safetensors"]

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

import graphopt
from graphopt.deploy.tensorrt_llm.network import Network
from graphopt.errors import DeployError, nearest
from graphopt.ir import weights
from graphopt.models.llama_config import LlamaConfig

ARCHITECTURE = "GraphoptForCausalLM"
#: Version of the names and settings above; the package refuses another one.
FORMAT = 1

_SAFETENSORS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8", "int32": "I32"}
_ALIGNMENT = 64
#: Of Hugging Face configurations: what rotary settings other programs read.
_ROPE_TYPES = ("default", "linear", "llama3")

Array = npt.NDArray[Any]


def check_config(network: Network, config: LlamaConfig, path: Path) -> None:
    """Compare the sizes in ``config`` with those of the tensors.

    Args:
        network: what the graph holds.
        config: what the configuration says.
        path: of the configuration, for messages.

    Raises:
        DeployError: the first difference.
    """
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    hidden, wide = config.hidden_size, config.intermediate_size
    rows = {"q_proj": q, "k_proj": kv, "v_proj": kv, "o_proj": hidden, "gate_proj": wide, "up_proj": wide}
    rows |= {"down_proj": hidden, "lm_head": config.vocab_size}
    compared: dict[str, tuple[Any, Any]] = {"num_hidden_layers": (config.num_hidden_layers, network.layers)}
    compared["embedding"] = ((config.vocab_size, hidden), tuple(network.embedding.shape))
    for name, linear in network.linears.items():
        compared[f"rows of {name}"] = (rows[name.rpartition(".")[2]], linear.rows)
    for name, epsilon in network.epsilons.items():
        compared[f"epsilon of {name}"] = (np.float32(config.rms_norm_eps), np.float32(epsilon))
    for what, (said, found) in compared.items():
        if said != found:
            raise DeployError(f"{path}: {what} is {said} there, and {found} in the graph; give the model's own config")


def config_of(network: Network, original: Mapping[str, Any], config: LlamaConfig, path: Path) -> dict[str, Any]:
    """Return the ``config.json`` of the checkpoint: the original one and what the package must know.

    Args:
        network: what the graph holds.
        original: contents of the model's own ``config.json``.
        config: the same, understood.
        path: of the original, for messages.

    Raises:
        DeployError: its rotary scaling is none that PyTorch programs know.
    """
    rope = original.get("rope_parameters") or original.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in _ROPE_TYPES:
        raise DeployError(
            f"{path}: rope_type '{kind}' is known to graphopt alone{nearest(kind, _ROPE_TYPES)}; give the config.json "
            "of the original checkpoint with --config"
        )
    dtype = weights.numpy_dtype(weights.onnx_dtype(network.embedding.dtype)).name
    linears = {
        name: {"bits": x.bits, "outliers": x.outliers, **({"group": x.group} if x.bits == 4 else {"group": 0})}
        for name, x in network.linears.items()
    }
    kept = {k: v for k, v in original.items() if k not in ("quantization_config", "auto_map")}
    return {
        **kept,
        "architectures": [ARCHITECTURE],
        "head_dim": config.head_dim,
        "num_key_value_heads": config.num_key_value_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": network.tied,
        "torch_dtype": dtype,
        "dtype": dtype,
        "graphopt": {"format": FORMAT, "version": graphopt.__version__, "linears": linears},
    }


def quant_config(network: Network) -> dict[str, Any]:
    """Return ``hf_quant_config.json``.

    ``quant_algo`` is null, as TensorRT-LLM knows no MixQ: its own layers stay as they are, and those of the package
    read what is said of each linear here from ``config.json``.
    """
    layers = {
        name: {"quant_algo": "MIXQ_W4A8" if x.bits == 4 else "MIXQ_W8A8", "group_size": x.group or None}
        for name, x in network.linears.items()
    }
    return {
        "producer": {"name": "graphopt", "version": graphopt.__version__},
        "quantization": {
            "quant_algo": None,
            "kv_cache_quant_algo": None,
            "exclude_modules": [] if "lm_head" in network.linears else ["lm_head"],
            "graphopt_layers": layers,
        },
    }


def tensors_of(network: Network) -> dict[str, Callable[[], Array]]:
    """Return what the checkpoint holds: name -> what reads it."""
    found: dict[str, Callable[[], Array]] = {"model.embed_tokens.weight": _reader(network.embedding)}
    dtype = weights.numpy_dtype(weights.onnx_dtype(network.embedding.dtype))
    for module, gamma in network.norms.items():
        # Where a norm was written out in standard operators, its gamma is there in float32.
        found[f"{module}.weight"] = _reader(gamma, dtype=dtype)
    for name, linear in network.linears.items():
        for key, operand in linear.tensors.items():
            found[f"{name}.{key}"] = operand.read
        found[f"{_quantizer_of(name)}.idx"] = _reader(linear.quantizer.idx)
    if network.head is not None and not network.tied:
        found["lm_head.weight"] = _reader(network.head, transpose=not network.head_transposed)
    return found


def _quantizer_of(name: str) -> str:
    """The module under whose name the outlier channels lie that the linear ``name`` reads."""
    prefix, _, last = name.rpartition(".")
    layer = prefix.rpartition(".")[0]
    norms = {"q_proj": "input_layernorm", "gate_proj": "post_attention_layernorm"}
    norms |= {"k_proj": "input_layernorm", "v_proj": "input_layernorm", "up_proj": "post_attention_layernorm"}
    if name == "lm_head":
        return "model.norm"
    return f"{layer}.{norms[last]}" if last in norms else name


def _reader(
    constant: gs.Constant, *, transpose: bool = False, dtype: np.dtype[Any] | None = None
) -> Callable[[], Array]:
    def read() -> Array:
        values: Array = weights.read(constant)
        values = values.T if transpose else values
        return values if dtype is None else values.astype(dtype)

    return read


def write_safetensors(path: Path, tensors: Mapping[str, Callable[[], Array]]) -> None:
    """Write a safetensors file, one tensor in memory at a time.

    Args:
        path: the file.
        tensors: name -> what reads it, twice: its size comes before its values.
    """
    entries: dict[str, Any] = {}
    end = 0
    for name, read in tensors.items():
        values = read()
        begin, end = end, end + values.nbytes
        entries[name] = {
            "dtype": _SAFETENSORS[values.dtype.name],
            "shape": list(values.shape),
            "data_offsets": [begin, end],
        }
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-(len(header) + 8) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for read in tensors.values():
            file.write(np.ascontiguousarray(read()).reshape(-1).view(np.uint8).data)
