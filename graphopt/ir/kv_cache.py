"""What drives a decoder's key-value cache of fixed capacity, kept in the model's metadata for runtimes.

    graphopt.kv_cache = {"kind": "static", "start": "start", "capacity": null, "bits": 32,
                         "pairs": [["past_key_values.0.key", "present.0.key"], ...]}

Bind each past and its present to one address, zeroed or not. ``start`` [B] int32 holds the number of rows that each
sequence has already; a call appends S rows behind them, and the next call starts S later (or less: rows beyond
``start`` are never read). Prompts of different lengths go right-padded into one call. Axis 2 of every past is the
capacity, which start + S must not exceed.
"""

__all__ = ["CAPACITY", "KEY", "KvCache", "read", "rows_for", "write"]

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import onnx

from graphopt.errors import ModelError
from graphopt.ir.model import Model

KEY = "graphopt.kv_cache"
#: Symbol of axis 2 of every past and present of a cache whose capacity is not fixed in the model.
CAPACITY = "cache_capacity"
#: Rows of the pages that formats may divide a sequence into: any capacity that is chosen is a multiple.
_PAGE = 64


@dataclass(frozen=True)
class KvCache:
    """A cache that is updated in place.

    Attributes:
        kind: name of the format: "static" for the activation type, or that of a scheme for the cache.
        start: name of the input (B,) int32: rows that each sequence has already.
        capacity: rows of a sequence; None if it is a dynamic axis, named `CAPACITY`.
        bits: that a cached value takes on average, with its scales.
        pairs: names (past input, present output) of tensors (B, Hkv, capacity, ...) that share an address.
    """

    kind: str
    start: str
    capacity: int | None
    bits: float
    pairs: tuple[tuple[str, str], ...]

    @property
    def short_name(self) -> str:
        """What results call it: static, mant4, or by its bits one of codebooks, cq4 and cq2."""
        return f"cq{self.bits:.0f}" if self.kind == "vq" else self.kind.removeprefix("kv-")


def rows_for(tokens: int) -> int:
    """Return the smallest capacity that holds ``tokens`` tokens in every format."""
    return -(-tokens // _PAGE) * _PAGE


def read(properties: Iterable[onnx.StringStringEntryProto]) -> KvCache | None:
    """Return the cache that a model's ``metadata_props`` describe (``Model.shell`` has them too); None without one.

    Raises:
        ModelError: the entry is damaged, or of a later version.
    """
    entry = next((p.value for p in properties if p.key == KEY), None)
    if entry is None:
        return None
    try:
        data = json.loads(entry)
        pairs = tuple((str(past), str(present)) for past, present in data.pop("pairs"))
        return KvCache(**data, pairs=pairs)
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise ModelError(f"the model's metadata '{KEY}' cannot be read; optimize the model again") from e


def write(model: Model, cache: KvCache) -> None:
    """Put ``cache`` into the metadata of ``model``, in place of any earlier one."""
    kept = [p for p in model.shell.metadata_props if p.key != KEY]
    kept.append(onnx.StringStringEntryProto(key=KEY, value=json.dumps(asdict(cache))))
    del model.shell.metadata_props[:]
    model.shell.metadata_props.extend(kept)
