"""Deploy small random decoders for TensorRT-LLM, each with the logits of its graph, for benchmarks/torch_ops.py.

python benchmarks/torch_models.py OUT --plugins libgraphopt_plugins.so
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from graphopt import api, compile
from graphopt.calibrate import collect
from graphopt.calibrate.feeds import declared, from_tokens, random
from graphopt.deploy.tensorrt_llm import PackageOptions, write_package
from graphopt.models.llama import build_llama
from graphopt.models.llama_config import LlamaConfig
from graphopt.models.weights import RandomWeights
from graphopt.runners.host import ort_runner, reference_runner

CONFIG = LlamaConfig(
    vocab_size=1024,
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
)
#: Name of the folder -> sizes, T, preset. Grouped queries, a width that no tile divides, biases, tied weights.
CASES = {
    "w8a8_float16": (CONFIG, "float16", "mixq-w8a8"),
    "w4a8_float16": (replace(CONFIG, intermediate_size=736, num_hidden_layers=3), "float16", "mixq-w4a8"),
    "w8a8_bfloat16_qwen": (
        replace(CONFIG, qkv_bias=True, tie_word_embeddings=True, num_key_value_heads=4),
        "bfloat16",
        "mixq-w8a8",
    ),
    "w4a8_bfloat16": (CONFIG, "bfloat16", "mixq-w4a8"),
}
_TOKENS = 24
#: onnx.reference, which runs bfloat16, has DequantizeLinear of no earlier one.
_OPSET = 19


def write_optimized(folder: Path, config: LlamaConfig, dtype: str, scheme: str | Path) -> Path:
    """Write ``model.opt.onnx`` with calibrated outliers and ``config.json`` into the empty ``folder``.

    ``scheme`` is a preset or the path of a recipe. Statistics are those of the same weights in float32, which ONNX
    Runtime has all operators for.
    """
    source = RandomWeights(config, seed=3, outliers=6)
    for t in {dtype, "float32"}:
        build_llama(config, source, folder / f"{t}.onnx", dtype=t, opset=_OPSET)
    (folder / "config.json").write_text(json.dumps(config.to_hf()))
    full = api.load(folder / "float32.onnx")
    feeds = list(random(declared(full), samples=4, length=64, seed=1))
    compile.canonicalize(full)
    statistics = collect(full, feeds, second_moment=True, source={})
    model = api.load(folder / f"{dtype}.onnx")
    api.optimize(model, scheme, statistics=statistics)
    api.save(model, folder / "model.opt.onnx")
    return folder / "model.opt.onnx"


def graph_logits(model: Path, tokens: np.ndarray, dtype: str) -> np.ndarray:
    """Return the graph's logits (tokens, vocabulary) float32; ONNX Runtime has no bfloat16 on the CPU."""
    with (reference_runner if dtype == "bfloat16" else ort_runner)(model) as runner:
        feeds = from_tokens(runner.inputs, tokens[None])
        return runner.infer(feeds, ["logits"])["logits"][0].astype(np.float32)


def write_reference(folder: Path, model: Path, dtype: str) -> None:
    """Write the graph's logits for some tokens into the deployed ``folder``."""
    config = json.loads((folder / "checkpoint" / "config.json").read_text())
    tokens = np.random.default_rng(5).integers(0, config["vocab_size"], _TOKENS)
    np.savez(folder / "reference.npz", tokens=tokens, logits=graph_logits(model, tokens, dtype))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--plugins", type=Path)
    options = parser.parse_args()
    for name, (config, dtype, scheme) in CASES.items():
        with tempfile.TemporaryDirectory() as scratch:
            model = write_optimized(Path(scratch), config, dtype, scheme)
            write_package(model, options.output / name, PackageOptions(plugins=options.plugins))
            write_reference(options.output / name, model, dtype)
        about = json.loads((options.output / name / "graphopt.json").read_text())
        print(f"{name}: logits of checkpoint and graph differ by {about['difference_of_logits']:.2e}")


if __name__ == "__main__":
    main()
