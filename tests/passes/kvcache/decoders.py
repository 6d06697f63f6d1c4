"""Decoders in two forms, concatenating and with a cache updated in place, driven call by call."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from graphopt import compile, ir
from graphopt.core.recipe import Recipe
from graphopt.core.report import Report
from graphopt.ir import kv_cache
from graphopt.ir.weights import numpy_dtype
from graphopt.models.llama import llama_model
from graphopt.models.presets import llama_config
from graphopt.models.weights import RandomWeights
from graphopt.passes import CACHES, SCHEMES

Arrays = dict[str, np.ndarray]
Run = Callable[[Path, Arrays], list[np.ndarray]]

#: The shape of SmolLM2: three query heads to a key head, untied sizes.
CONFIG = llama_config(
    hidden_size=48, num_attention_heads=6, num_key_value_heads=2, head_dim=16, num_hidden_layers=2, vocab_size=80
)
EXPORTERS = Path(__file__).parents[2] / "fixtures" / "exporters"


def built(dtype: str = "float32") -> ir.Model:
    """Our builder's decoder, with outlier channels."""
    return llama_model(CONFIG, RandomWeights(CONFIG, 3, outliers=2), dtype=dtype)


def optimized(model: ir.Model, cache: str | None = "static", scheme: str = "none", **settings: Any) -> Report:
    """Optimize ``model`` in place."""
    recipe = Recipe.preset(scheme, SCHEMES)
    return compile.optimize(model, recipe if cache is None else recipe.with_cache(cache, settings, CACHES))


def outcome(report: Report) -> list[tuple[str, str]]:
    """(status, reason) of what the stage found."""
    return [(f.status, f.reason) for f in report.findings if f.stage == "kv-cache"]


class Decoder:
    """A model on disk and the state of its cache.

    Args:
        path: where ``model`` is saved.
        model: with either kind of cache.
        run: of tests.support.runtime.
        batch: sequences.
        capacity: rows of a cache whose capacity is dynamic.
    """

    def __init__(self, path: Path, model: ir.Model, run: Run, batch: int, capacity: int = 24) -> None:
        ir.save(model, path)
        self._path, self._run = path, run
        proto = onnx.load(path, load_external_data=False)
        self.cache = kv_cache.read(proto.metadata_props)
        self._inputs, self._outputs = [i.name for i in proto.graph.input], [o.name for o in proto.graph.output]
        self.start = np.zeros(batch, np.int32)
        self.state: Arrays = {}
        for info in proto.graph.input:
            if info.name.startswith("past"):
                kind = info.type.tensor_type
                shape = [d.dim_value for d in kind.shape.dim]
                shape[0], shape[2] = batch, (shape[2] or capacity) if self.cache else 0
                # Memory that nothing was written to.
                self.state[info.name] = np.full(shape, np.nan).astype(numpy_dtype(kind.elem_type))

    def step(self, tokens: np.ndarray, lengths: Sequence[int] | None = None) -> np.ndarray:
        """Return the logits (B, S, V) of new ``tokens`` (B, S), of which the first ``lengths[b]`` count."""
        batch, seq = tokens.shape
        past = int(self.start[0])
        given = {
            "input_ids": tokens,
            "start": self.start,
            "attention_mask": np.ones((batch, past + seq), np.int64),
            "position_ids": np.tile(np.arange(past, past + seq), (batch, 1)),
            **self.state,
        }
        values = self._run(self._path, {name: given[name] for name in self._inputs})
        results = dict(zip(self._outputs, values, strict=True))
        for name in self.state:
            self.state[name] = results[name.replace("past_key_values", "present")]
        self.start = self.start + np.array(lengths if lengths is not None else [seq] * batch, np.int32)
        return results["logits"]
