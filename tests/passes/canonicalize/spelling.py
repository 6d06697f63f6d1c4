"""Small graphs in ONNX's text syntax, and stages that infer types before they match, as the pipeline does."""

from collections.abc import Sequence

import numpy as np

from graphopt.core.pipeline import Stage
from graphopt.core.report import Report
from graphopt.core.rule import Rule, apply_rules
from graphopt.ir.model import Model
from graphopt.ir.shapes import infer_shapes
from tests.support.arrays import FLOATS

#: Header of graphs with operators of ONNX Runtime.
MICROSOFT = '<ir_version: 8, opset_import: ["": 18, "com.microsoft": 1]>\n'


def header(opset: int) -> str:
    return f'<ir_version: 8, opset_import: ["": {opset}]>\n'


def inferred(rules: Sequence[Rule]) -> Stage:
    """The rules, after shape inference."""

    def run(model: Model, report: Report) -> None:
        infer_shapes(model)
        apply_rules(model, rules, "test", report)

    return Stage("test", run)


def constant(name: str, *shape: int, kind: str = "float", seed: int = 0, values: Sequence[float] = ()) -> str:
    """An initializer for the list of a graph: ``values``, or random ones with an outlier."""
    numbers = np.array(values or np.random.default_rng(seed).standard_normal(int(np.prod(shape))).round(3))
    if not values:
        numbers[-1:] *= 30
    if kind in ("float16", "bfloat16"):
        # The syntax wants the bits of these.
        numbers = numbers.astype(FLOATS[kind]).view(np.uint16)
    elif kind not in ("float", "double"):
        numbers = (numbers * 3).astype(int)
    return f"{kind}[{', '.join(map(str, shape))}] {name} = {{{', '.join(map(str, numbers.tolist()))}}}"
