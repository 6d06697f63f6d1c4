"""Errors of 4-bit types on groups of 64 values: of distributions, and of the keys and values of a real decoder.

    python benchmarks/mant_types.py out/demo/model.onnx --json benchmarks/results/accuracy/mant_types.json

Prints the table of passes/mant/README.md: the mean over groups of ||x - x̂||² / ||x||², for types that are searched
(best weight error) and for those that are selected while a model runs.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from graphopt import compile, ir
from graphopt.calibrate.feeds import declared, from_tokens
from graphopt.calibrate.taps import Tap, TappedModel
from graphopt.cli.sources import corpus
from graphopt.core.op import DOMAIN
from graphopt.passes.mant.cache_codes import SELECTORS, decode, encode
from graphopt.passes.mant.rounding import Codec
from graphopt.passes.mant.search import choose
from graphopt.passes.mant.types import INT4_TYPE, MANT, NF4, TypeTable
from graphopt.results import provenance, write_rows

GROUP, COUNT = 64, 20000


def searched(table: TypeTable, *, clip: bool = False) -> Callable[[np.ndarray], np.ndarray]:
    """Return a quantizer by search among the types of ``table``."""

    def quantize(x: np.ndarray) -> np.ndarray:
        groups = x[:, None]
        codec = Codec(table, choose(groups, table, clip=clip))
        return codec.decode(codec.encode(groups))[:, 0]

    return quantize


QUANTIZERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "INT4": searched(MANT.only((INT4_TYPE,))),
    "NF4": searched(NF4),
    "M-ANT, searched": searched(MANT),
    "M-ANT, searched, clipped": searched(MANT, clip=True),
    "M-ANT int8, searched": searched(MANT.rounded()),
    **{f"M-ANT, {name}": lambda x, name=name: decode(*encode(x, name)) for name in SELECTORS},
}


def distributions(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return groups (COUNT, GROUP) of each distribution."""
    size = (COUNT, GROUP)
    return {
        "normal": rng.standard_normal(size),
        "Laplace": rng.laplace(size=size),
        "Student-t, 4": rng.standard_t(4, size),
        "uniform": rng.uniform(-1, 1, size),
    }


def keys_and_values(path: Path, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return groups of rotated keys along channels and of values along tokens, of two chunks of 512 tokens."""
    model = ir.load(path)
    compile.canonicalize(model)
    attention = [n for n in model.graph.nodes if n.op == "Attention" and n.domain == DOMAIN]
    size = int(attention[0].inputs[1].shape[-1])
    taps = [Tap(n.inputs[i].name, size) for n in attention for i in (1, 2)]
    found: dict[int, list[np.ndarray]] = {1: [], 2: []}
    with TappedModel(model) as tapped:
        session = tapped.open(taps)
        for chunk in corpus(None, None, path).chunks("calibration", 2, 512):
            values = session.run(from_tokens(declared(model), chunk[None]))
            for tap, value in zip(taps, (values[t.tensor] for t in taps), strict=True):
                which = 1 + taps.index(tap) % 2
                along = value if which == 1 else value.swapaxes(-1, -2)
                found[which].append(along.reshape(-1, GROUP))
    groups = {name: np.concatenate(found[i]) for i, name in ((1, "keys"), (2, "values"))}
    return {name: x[rng.permutation(len(x))[:COUNT]] for name, x in groups.items()}


def main() -> None:
    """Measure, print the table, and write rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model", type=Path, help="a decoder with heads of 64 channels, and its tokenizer.json beside it"
    )
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    data = distributions(rng) | keys_and_values(arguments.model, rng)
    print(f"| type | {' | '.join(data)} |\n|{' --- |' * (1 + len(data))}")
    rows = []
    for name, quantize in QUANTIZERS.items():
        errors = {}
        for kind, x in data.items():
            exact = x.astype(np.float32)
            squares = np.square(exact).sum(axis=1)
            share = np.square(quantize(exact) - exact).sum(axis=1)[squares > 0] / squares[squares > 0]
            errors[kind] = float(share.mean())
        print(f"| {name} | {' | '.join(f'{e:.5f}' for e in errors.values())} |")
        rows.append({"type": name, "group": GROUP, "errors": errors, **provenance()})
    if arguments.json:
        write_rows(arguments.json, rows)


if __name__ == "__main__":
    main()
