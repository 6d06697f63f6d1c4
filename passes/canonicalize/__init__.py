"""Exporters' many spellings -> one canonical form: Linear, RMSNorm, LayerNorm, Rotary, Attention, GatedAct.

The order matters: tidying first, so that patterns need not look through Constants, Identities and repeated nodes;
rotary before attention; what looks at canonical nodes (bias, gate) after they exist, biases also after the operators
that hold them are taken apart; and tidying again at the end.
Each module says what it turns into what, and which scopes it visits. Model-local functions are never touched.
"""

__all__ = ["CANONICALIZE", "OPS", "PRODUCT_RULES", "legalize"]

from collections.abc import Sequence

from graphopt.core.pipeline import Stage
from graphopt.core.report import Report
from graphopt.core.rule import Rule, apply_rules
from graphopt.ir.model import Model
from graphopt.ir.shapes import infer_shapes
from graphopt.passes.canonicalize import (
    attention,
    attention_ops,
    block_quantized,
    gated,
    linear,
    norm,
    norm_ops,
    rotary,
)
from graphopt.passes.canonicalize.cleanup import clean_up
from graphopt.passes.canonicalize.fold_constants import fold_constants
from graphopt.passes.canonicalize.leftovers import OF_INTEGERS, note_leftovers
from graphopt.passes.canonicalize.legalize import legalize
from graphopt.passes.canonicalize.naming import tell_apart
from graphopt.passes.canonicalize.ops import OPS
from graphopt.passes.canonicalize.share_common import share_common
from graphopt.passes.canonicalize.unify_symbols import unify_symbols

#: Rules that refuse a product with a weight before it is a linear.
PRODUCT_RULES = frozenset(
    {r.name for r in (*linear.RULES, *block_quantized.RULES) if r.name.startswith("linear-")} | {*OF_INTEGERS}
)


def _rules(name: str, rules: Sequence[Rule]) -> Stage:
    def run(model: Model, report: Report) -> None:
        apply_rules(model, rules, name, report)

    return Stage(name, run)


#: The stages, in order.
CANONICALIZE: tuple[Stage, ...] = (
    Stage("names", tell_apart),
    Stage("clean-up", clean_up),
    Stage("fold-constants", fold_constants),
    Stage("share-common", share_common),
    _rules("linear", (*linear.RULES, *block_quantized.RULES)),
    _rules("norm", (*norm.RULES, *norm_ops.RULES)),
    _rules("rotary", rotary.RULES),
    _rules("attention", (*attention.RULES, *attention_ops.RULES)),
    _rules("activation", gated.RULES),
    _rules("linear-bias", linear.BIAS_RULES),
    _rules("gate", gated.GATE_RULES),
    Stage("unify-symbols", unify_symbols),
    Stage("infer-shapes-again", lambda model, report: infer_shapes(model)),
    Stage("fold-constants-again", fold_constants),
    Stage("share-common-again", share_common),
    Stage("clean-up-again", clean_up),
    Stage("leftovers", note_leftovers),
)
