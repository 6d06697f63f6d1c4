"""Head sizes of caches that declare a symbol for them."""

from pathlib import Path

import numpy as np
import pytest

from graphopt import ir
from graphopt.calibrate import feeds
from graphopt.calibrate.head_size import head_size
from tests.support.rewrite import parse
from tests.support.runtime import run_ort

EXPORTS = Path(__file__).parents[2] / "fixtures" / "exporters"
GQA = "com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2>"
PAST = "float[B, 2, P, D] k, float[B, 2, P, D] v, int32[B] n, int32 t"


@pytest.mark.parametrize("name", ["llama_genai_fp32", "llama_genai_int4", "llama_genai_int4_tied", "qwen2_genai_fp32"])
def test_random_data_runs_what_onnxruntime_genai_builds(name: str) -> None:
    path = EXPORTS / f"{name}.onnx"
    inputs = feeds.declared(ir.load(path))
    assert {i.shape[-1] for i in inputs if i.name.startswith("past")} == {16}
    (feed,) = feeds.random(inputs, samples=1, length=5, seed=0)
    assert np.isfinite(run_ort(path, feed)[0]).all()


@pytest.mark.parametrize(
    ("body", "size"),
    [
        (f"(float[B, S, 64] q, float[B, S, 32] kn, float[B, S, 32] vn, {PAST}) => (float[B, S, 64] y, float[] a, "
         f"float[] b) {{ y, a, b = {GQA}(q, kn, vn, k, v, n, t) }}", 16),
        # Query, key and value in one tensor, of a product with bias.
        (f"(float[B, S, 3] x, {PAST}) => (float[B, S, 32] y, float[] a, float[] b) <float[3, 64] w, float[64] c> "
         f"{{ m = MatMul(x, w) s = Add(m, c) y, a, b = {GQA}(s, , , k, v, n, t) }}", 8),
        # Norms of heads.
        (f"(float[B, S, 3] x, float[B, S, 32] kn, float[B, S, 32] vn, {PAST}) => (float[B, S, 32] y, float[] a, "
         f"float[] b) <float[3, 64] w, int64[3] h = {{0, -1, 16}}, int64[3] j = {{0, -1, 64}}, float[16] g> {{ "
         "m = MatMul(x, w) r = Reshape(m, h) l = SimplifiedLayerNormalization(r, g) s = Reshape(l, j) "
         f"y, a, b = {GQA}(s, kn, vn, k, v, n, t) }}", 16),
        # Nothing says it.
        (f"(float[B, S, Q] q, float[B, S, 32] kn, float[B, S, 32] vn, {PAST}) => (float[B, S, Q] y, float[] a, "
         f"float[] b) {{ y, a, b = {GQA}(q, kn, vn, k, v, n, t) }}", None),
        (f"({PAST}) => (float[B, 2, P, D] y) {{ y = Add(k, v) }}", None),
    ],
)  # fmt: skip
def test_head_size(body: str, size: int | None) -> None:
    past = next(t for t in parse(f"agraph {body}").graph.inputs if t.name == "k")
    assert head_size(past) == size
