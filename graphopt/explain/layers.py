"""Vector-quantized layers of an optimized model: sizes, formats, and how often which entry is looked up."""

__all__ = ["CodedCache", "Format", "Usage", "VqLinear", "coded_caches", "vq_linears"]

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.core.op import DOMAIN
from graphopt.ir import query, weights
from graphopt.ir.model import Model
from graphopt.passes.vq import e8, numerics

#: Codes that are counted of a weight: enough for shares to a tenth of a percent, in rows spread over all of it.
_MOST_CODES = 1 << 20
#: Entries of a codebook of the lattice that are looked up; signs and shifts are computed.
_LATTICE_ENTRIES = 256


@dataclass(frozen=True)
class Format:
    """VQ<vector, bits, residuals> of an (n, k) weight.

    Attributes:
        vector, bits, residuals: v, b and r.
        tile_rows, tile_columns: weights that share codebooks.
        lattice: whether entries are points of the lattice E8.
    """

    vector: int
    bits: int
    residuals: int
    tile_rows: int
    tile_columns: int
    lattice: bool = False

    def __str__(self) -> str:
        return f"VQ<{self.vector},{self.bits},{self.residuals}>" + (" E8" if self.lattice else "")

    @property
    def entries(self) -> int:
        """Entries of one codebook that are looked up."""
        return _LATTICE_ENTRIES if self.lattice else 1 << self.bits

    @property
    def entry_bytes(self) -> int:
        """Of one entry, in 16-bit elements."""
        return 2 * self.vector

    @property
    def book_bytes(self) -> int:
        """Of all codebooks of a tile. Residuals of the lattice share one table."""
        return (1 if self.lattice else self.residuals) * self.entries * self.entry_bytes

    def row_bytes(self, k: int) -> int:
        """Of the codes of a row of ``k`` columns."""
        return numerics.row_bytes(-(-k // self.vector) * self.residuals, self.bits)

    def tiles(self, n: int, k: int) -> int:
        """How often an (n, k) weight has codebooks."""
        return -(-n // self.tile_rows) * -(-k // self.tile_columns)


@dataclass(frozen=True)
class Usage:
    """How often entries are looked up, by the codes in the file.

    Attributes:
        counts: (entries,) of each entry, over all tiles and residuals.
        of: codes that were counted.
    """

    counts: np.ndarray
    of: int

    def covering(self, share: float) -> int:
        """How many of the most used entries make up ``share`` of the look-ups."""
        falling = np.sort(self.counts)[::-1].cumsum()
        return int(np.searchsorted(falling, share * falling[-1])) + 1

    @property
    def unused(self) -> int:
        """Entries that are never named."""
        return int((self.counts == 0).sum())

    def hits(self, bound: int) -> float:
        """Share of look-ups whose code is below ``bound``."""
        return float(self.counts[:bound].sum() / self.counts.sum())

    def lines(self, entry_bytes: int, lanes: int = 32, line: int = 128) -> float:
        """Expected cache lines that ``lanes`` look-ups touch, were codes independent."""
        per_line = max(1, line // entry_bytes)
        padded = np.pad(self.counts, (0, -len(self.counts) % per_line))
        share = padded.reshape(-1, per_line).sum(axis=1) / self.counts.sum()
        return float((1 - (1 - share) ** lanes).sum() * max(1, entry_bytes // line))


@dataclass(frozen=True)
class VqLinear:
    """A linear with vector-quantized weight.

    Attributes:
        name: of the node, which recipes match.
        n, k: output and input channels.
        dtype: T.
        format: of the weight.
        usage: of codebook entries.
        transform: name of the op that transforms the input, "" where none does.
        readers: how many linears read what that op makes.
    """

    name: str
    n: int
    k: int
    dtype: str
    format: Format
    usage: Usage
    transform: str = ""
    readers: int = 1

    @property
    def code_bytes(self) -> int:
        """Of all codes."""
        return self.n * self.format.row_bytes(self.k)

    @property
    def book_bytes(self) -> int:
        """Of the codebooks of all tiles."""
        return self.format.tiles(self.n, self.k) * self.format.book_bytes


@dataclass(frozen=True)
class CodedCache:
    """Attention over a cache of codes.

    Attributes:
        name: of the node.
        heads, kv_heads, head_size: of attention; heads of queries are 0 where the model leaves them open.
        vector: channels of a code of 8 bits.
        element_bytes: of T.
    """

    name: str
    heads: int
    kv_heads: int
    head_size: int
    vector: int
    element_bytes: int

    @property
    def token_bytes(self) -> int:
        """Codes of keys and values of a token."""
        return 2 * self.kv_heads * self.head_size // self.vector

    @property
    def plain_token_bytes(self) -> int:
        """The same in T."""
        return 2 * self.kv_heads * self.head_size * self.element_bytes

    @property
    def book_bytes(self) -> int:
        """Codebooks of keys and values of all heads."""
        return 2 * self.kv_heads * self.head_size * 256 * self.element_bytes

    @property
    def break_even(self) -> int:
        """Tokens from which on a step reads fewer bytes of codes and codebooks than it would read of a cache in T."""
        return -(-self.book_bytes // (self.plain_token_bytes - self.token_bytes))


def vq_linears(model: Model, pattern: str = "*") -> Iterator[VqLinear]:
    """Yield the vector-quantized linears whose names match the glob ``pattern``, in graph order."""
    for node in model.graph.nodes:
        if node.domain == DOMAIN and node.op in ("VQLinear", "VQLinearE8") and fnmatchcase(node.name, pattern):
            yield _linear(node)


def coded_caches(model: Model, pattern: str = "*") -> Iterator[CodedCache]:
    """Yield the attentions over codes whose names match the glob ``pattern``, in graph order."""
    for node in model.graph.nodes:
        if node.domain == DOMAIN and node.op == "VQCachedAttention" and fnmatchcase(node.name, pattern):
            codebook = node.inputs[8]
            kv_heads, groups, _, vector = (int(d) for d in codebook.shape)
            shape = list(node.inputs[0].shape or [])
            heads = int(shape[2]) if len(shape) == 4 and isinstance(shape[2], int) else 0
            size = weights.numpy_dtype(weights.onnx_dtype(codebook.dtype)).itemsize
            yield CodedCache(str(node.name), heads, kv_heads, groups * vector, vector, size)


def _linear(node: gs.Node) -> VqLinear:
    x, codes, books, _, bias = node.inputs
    n, stored = (int(d) for d in codes.shape)
    lattice = node.op == "VQLinearE8"
    if lattice:
        residuals, vector, bits = int(books.shape[0]), e8.VECTOR, e8.BITS
    else:
        residuals, vector, bits = int(books.shape[2]), int(books.shape[4]), int(node.attrs["bits"])
    # Where the model leaves K open, what the codes have room for.
    last = (x.shape or [None])[-1]
    k = last if isinstance(last, int) else stored * 8 // (residuals * bits) * vector
    tile_rows = n if lattice else min(n, int(node.attrs["tile_rows"]))
    tile_columns = k if lattice else min(k, int(node.attrs["tile_columns"]))
    found = Format(vector, bits, residuals, tile_rows, tile_columns, lattice)
    dtype = str(weights.numpy_dtype(weights.onnx_dtype(bias.dtype)))
    source = query.producer(x)
    transform = source.op if source is not None and source.domain == DOMAIN and source.op.endswith("Hadamard") else ""
    usage = _usage(weights.read(codes), found, k)
    return VqLinear(str(node.name), n, k, dtype, found, usage, transform, len(query.consumers(x)) if transform else 1)


def _usage(codes: Any, fmt: Format, k: int) -> Usage:
    count = -(-k // fmt.vector) * fmt.residuals
    step = max(1, math.ceil(len(codes) * count / _MOST_CODES))
    named = numerics.unpack_codes(np.ascontiguousarray(codes[::step]), fmt.bits, count).reshape(-1)
    return Usage(np.bincount(named % fmt.entries, minlength=fmt.entries), len(named))
