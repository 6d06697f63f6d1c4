"""Write models, inputs and reference outputs for benchmarks/engine.py check.

    python benchmarks/engine_cases.py FOLDER

Every case is <name>.onnx (opset 17, weights inside or beside it) with <name>.npz: ``in.<input>``, ``out.<output>`` and
``limit.<output>``, the normalized error allowed. The ops' references are the numpy evaluators; those of whole models
are their function bodies, run by ONNX Runtime.
"""

import argparse
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import engine_models
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
from engine_models import OPSET, SEED

from graphopt import ir
from graphopt.core.op import OpSpec, attach_bodies
from graphopt.ir.export import to_proto
from graphopt.ir.weights import onnx_dtype
from graphopt.models.bert import BertConfig, build_bert
from graphopt.models.presets import llama_config
from graphopt.models.weights import RandomWeights
from graphopt.passes import OPS
from graphopt.passes.vq import numerics
from graphopt.passes.vq.ops import LINEAR

#: Operands that are weights in a real model, and so initializers here.
WEIGHTS = frozenset({"idx", "gamma", "beta", "wq", "wq4", "sg", "sw", "wo", "bias", "codes", "codebooks", "ratios",
                     "scale", "signs", "table", "types", "k_center", "codebook_k", "codebook_v"})  # fmt: skip
#: Both sides round one float32 value to T; the limits are those of tests/contract/test_ops.py, doubled because a kernel
#: may also sum in another order before it rounds.
OP_LIMIT = {"float32": 4e-5, "float16": 2**-9}
#: Ops whose INT8 outputs are codes of nearest entries: where two are equally near, the other one may be far away.
CACHES, FAR = ("VQCachedAttention", "MANTCachedAttention"), 255
#: VQ<vector, bits, residuals> of no preset; tokens, rows and columns.
GENERATED = ((4, 8, 2), (2, 6, 1))
GENERATED_SHAPE = (3, 264, 512)
#: A whole fp16 model: rounding once per op and layer on both sides, and attention's scores. More where its own logits
#: move by more when what it reads is an ulp off, as those of quantized models do: a code more or less is a large step.
MODEL_LIMIT, NOISES = 0.03, 4


def fits(spec: OpSpec, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> bool:
    """Whether TensorRT 8 takes the op's examples: INT8 rows in fours; no state that the first call changes."""
    rows = (a.shape[-1] for a in (*inputs, *outputs) if a.dtype == np.int8)
    return spec.plugin and not spec.name.endswith("Online") and all(n % 4 == 0 for n in rows)


def write_ops(folder: Path, dtype: str, *, mixq: bool) -> None:
    """A model with a node of every op of MixQ, or of every other op."""
    nodes, given, made, arrays = [], [], [], {}
    for spec in (spec for spec in OPS if spec.name.startswith("MixQ") == mixq):
        rng = np.random.default_rng([SEED, zlib.crc32(spec.name.encode())])
        inputs = [np.ascontiguousarray(a) for a in spec.examples(rng, np.dtype(dtype).type)]
        attributes = {a.name: 1 for a in spec.attributes if a.name.startswith("emit_")} | spec.example_attributes
        with np.errstate(all="ignore"):
            outputs = spec.evaluate(*inputs, **{a.name: a.default for a in spec.attributes} | attributes)
        if not fits(spec, inputs, outputs):
            continue
        tensors: list[gs.Tensor] = []
        for param, array in zip(spec.inputs, inputs, strict=True):
            name = f"{spec.name}.{param.name}"
            if param.name in WEIGHTS:
                tensors.append(gs.Constant(name, array))
            else:
                tensors.append(gs.Variable(name, onnx_dtype(array.dtype), array.shape))
                given.append(tensors[-1])
                arrays[f"in.{name}"] = array
        results = [
            gs.Variable(f"{spec.name}.{p.name}.out", onnx_dtype(a.dtype), a.shape)
            for p, a in zip(spec.outputs, outputs, strict=True)
        ]
        for result, array in zip(results, outputs, strict=True):
            arrays[f"out.{result.name}"] = array
            arrays[f"limit.{result.name}"] = np.float64(OP_LIMIT[dtype])
            # Two codes of 4 bits in a byte: a step of the upper one is a large one of the byte.
            packed = spec.name.endswith("4")
            arrays[f"step.{result.name}"] = np.int64(FAR if packed or spec.name in CACHES else 1)
        made += results
        nodes.append(spec.node(spec.name, tensors, results, **attributes))
    model = ir.Model(gs.Graph(nodes, given, made, opset=OPSET, name="ops"))
    attach_bodies(model, OPS)
    name = f"ops_{'mixq' if mixq else 'others'}_{dtype}"
    onnx.save(to_proto(model), folder / f"{name}.onnx")
    np.savez(folder / f"{name}.npz", **arrays)


def write_generated(folder: Path) -> None:
    """Linears in formats of VQ that no preset has: NVRTC makes their kernels when the engine is built."""
    rng = np.random.default_rng(SEED)
    nodes, given, made, arrays = [], [], [], {}
    for vector, bits, residuals in GENERATED:
        name, (tokens, n, k) = f"vq{vector}_{bits}_{residuals}", GENERATED_SHAPE
        inputs = {
            "x": rng.standard_normal((tokens, k)).astype(np.float16),
            "codes": numerics.pack_codes(rng.integers(0, 1 << bits, (n, k // vector * residuals)), bits),
            "codebooks": rng.standard_normal((1, 1, residuals, 1 << bits, vector)).astype(np.float16),
            "scale": rng.uniform(0.01, 0.1, n).astype(np.float32),
            "bias": rng.standard_normal(n).astype(np.float16),
        }
        attributes = {"bits": bits, "tile_rows": n, "tile_columns": k}
        (want,) = LINEAR.evaluate(*inputs.values(), **attributes)
        x = gs.Variable(f"{name}.x", np.float16, inputs["x"].shape)
        y = gs.Variable(f"{name}.y.out", np.float16, want.shape)
        constants = [gs.Constant(f"{name}.{key}", value) for key, value in inputs.items() if key != "x"]
        nodes.append(LINEAR.node(name, [x, *constants], [y], **attributes))
        given.append(x)
        made.append(y)
        arrays |= {f"in.{x.name}": inputs["x"], f"out.{y.name}": want, f"limit.{y.name}": OP_LIMIT["float16"]}
    model = ir.Model(gs.Graph(nodes, given, made, opset=OPSET, name="ops"))
    attach_bodies(model, OPS)
    onnx.save(to_proto(model), folder / "ops_generated_float16.onnx")
    np.savez(folder / "ops_generated_float16.npz", **arrays)


def write_model(folder: Path, name: str, file: Path, feeds: dict[str, np.ndarray]) -> None:
    """The reference outputs of ``file``."""
    wanted = outputs_of(file, feeds, {})
    rng = np.random.default_rng(SEED)
    tables = embeddings(file)
    moved = [
        outputs_of(file, {k: an_ulp_off(v, rng) for k, v in feeds.items()},
                   {k: an_ulp_off(v, rng) for k, v in tables.items()})
        for _ in range(NOISES)
    ]  # fmt: skip
    arrays = {f"in.{k}": v for k, v in feeds.items()}
    for output, value in wanted.items():
        arrays[f"out.{output}"] = value
        arrays[f"limit.{output}"] = np.float64(max(MODEL_LIMIT, *(distance(m[output], value) for m in moved)))
    np.savez(folder / f"{name}.npz", **arrays)


def outputs_of(file: Path, feeds: dict[str, np.ndarray], initializers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What ONNX Runtime computes, with some initializers replaced."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in initializers.items()}
    for name, value in values.items():
        options.add_initializer(name, value)
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def embeddings(file: Path) -> dict[str, np.ndarray]:
    """The float16 tables that a model gathers rows from."""
    graph = onnx.load(file).graph
    gathered = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    found = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer if t.name in gathered}
    return {name: array for name, array in found.items() if array.dtype == np.float16}


def an_ulp_off(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same with half of its floating numbers replaced by the next larger one."""
    if values.dtype.kind != "f":
        return values
    return np.where(rng.random(values.shape) < 0.5, np.nextafter(values, values.dtype.type(np.inf)), values)


def distance(got: np.ndarray, want: np.ndarray) -> float:
    """Normalized error."""
    a, b = got.astype(np.float64), want.astype(np.float64)
    return float(np.linalg.norm(a - b) / (np.linalg.norm(b) or 1.0))


def decoder_feeds(layers: int, heads: int, width: int, batch: int, seq: int, past: int, vocab: int) -> dict[str, Any]:
    rng = np.random.default_rng(SEED)
    feeds = {
        "input_ids": rng.integers(0, vocab, (batch, seq)),
        "attention_mask": np.ones((batch, past + seq), np.int64),
        "position_ids": np.broadcast_to(np.arange(past, past + seq), (batch, seq)).copy(),
    }
    for i in range(layers):
        for kind in ("key", "value"):
            value = rng.standard_normal((batch, heads, past, width), np.float32).astype(np.float16)
            feeds[f"past_key_values.{i}.{kind}"] = value
    return feeds


def write_decoder(folder: Path) -> None:
    """A decoder as exported, and with caches that are updated in place; in fp16 and in MixQ.

    TensorRT 8.6's own attention is wrong for one token where heads are grouped (benchmarks/NOTES.md), so that prompts
    are all that the exported ones can be checked with.
    """
    config = llama_config()
    source = folder / "decoder.onnx"
    engine_models.write_decoder(config, source, outliers=4)
    statistics = engine_models.planted(source, 16)
    schemes = {"decoder.mixq": "mixq-w8a8", "decoder.static": "none+static", "decoder.mixq.static": "mixq-w8a8+static"}
    for name, scheme in schemes.items():
        engine_models.optimize(source, folder / f"{name}.onnx", statistics, scheme=scheme)
    for phase, (batch, seq, past) in {"prefill": (2, 24, 0), "decode": (3, 1, 40)}.items():
        feeds = decoder_feeds(
            config.num_hidden_layers, config.num_key_value_heads, config.head_dim, batch, seq, past, config.vocab_size
        )
        for name in ("decoder", *schemes):
            static = name.endswith("static")
            if static or phase == "prefill":
                given = in_place(feeds, batch, seq, past) if static else feeds
                write_model(folder, f"{name}.{phase}", folder / f"{name}.onnx", given)


def in_place(feeds: dict[str, np.ndarray], batch: int, seq: int, past: int) -> dict[str, np.ndarray]:
    """The same call of a decoder whose caches have room for the new rows."""
    room = ((0, 0), (0, 0), (0, seq), (0, 0))
    given = {name: np.pad(value, room) for name, value in feeds.items() if name.startswith("past")}
    return {"input_ids": feeds["input_ids"], "start": np.full(batch, past, np.int32), **given}


def write_encoder(folder: Path) -> None:
    config = BertConfig(
        vocab_size=512, hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4
    )
    source = folder / "encoder.onnx"
    build_bert(config, RandomWeights(config, outliers=4), source, dtype="float16", opset=OPSET)
    statistics = engine_models.planted(source, 16)
    engine_models.optimize(source, folder / "encoder.mixq.onnx", statistics, scheme="mixq-w8a8")
    rng = np.random.default_rng(SEED)
    session = ort.InferenceSession(str(source), providers=["CPUExecutionProvider"])
    feeds = {
        i.name: np.ones((2, 20), np.int64) if "mask" in i.name else
        np.zeros((2, 20), np.int64) if "type" in i.name else rng.integers(0, 512, (2, 20))
        for i in session.get_inputs()
    }  # fmt: skip
    write_model(folder, "encoder.mixq.run", folder / "encoder.mixq.onnx", feeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for dtype in ("float16", "float32"):
        for mixq in (True, False):
            write_ops(folder, dtype, mixq=mixq)
    write_generated(folder)
    write_decoder(folder)
    write_encoder(folder)
    for path in sorted(folder.iterdir()):
        print(f"{path.stat().st_size / 1e6:8.2f} MB  {path.name}")


if __name__ == "__main__":
    main()
