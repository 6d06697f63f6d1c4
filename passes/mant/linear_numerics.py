"""The linears of M-ANT in numpy: what their kernels are held to. Needs numpy only, and tables come as arguments, so
that it loads where little else is installed."""

__all__ = ["integer_linear", "linear", "pack_types", "row_bytes", "row_halves", "unpack_types"]

import numpy as np

from graphopt.numerics.packing import pack_int4, unpack_int4


def pack_types(ids: np.ndarray) -> np.ndarray:
    """Return the operand ``types`` (G, 16 ceil(N / 32)) int8 of ids (G, N) in 0..15."""
    return pack_int4(ids.astype(np.int8))


def unpack_types(packed: np.ndarray, channels: int) -> np.ndarray:
    """Return ids (G, N) uint8."""
    return unpack_int4(packed, channels).view(np.uint8) & np.uint8(15)


def linear(
    x: np.ndarray,
    codes: np.ndarray,
    types: np.ndarray,
    scale: np.ndarray,
    table: np.ndarray,
    bias: np.ndarray,
    *,
    group: int,
) -> np.ndarray:
    """Return T(x @ w^T + bias), w[n, k] = scale[k // group, n] * table[type, code]; operands as in `ops.LINEAR`."""
    code, ids, steps = _operands(codes, types, scale, x.shape[-1])
    of_column = np.arange(x.shape[-1]) // group
    w = table.astype(np.float64)[ids[of_column].T, code] * steps[of_column].T
    with np.errstate(invalid="ignore", over="ignore"):
        y = x.astype(np.float64) @ w.T + bias.astype(np.float64)
        return np.asarray(y.astype(np.float32).astype(x.dtype))


def integer_linear(
    xq: np.ndarray,
    sx: np.ndarray,
    codes: np.ndarray,
    types: np.ndarray,
    scale: np.ndarray,
    tables: np.ndarray,
    factors: np.ndarray,
    bias: np.ndarray,
    *,
    group: int,
) -> np.ndarray:
    """Return y by exact integer sums per group; operands as in `ops.LINEAR_W4A8`.

    Args:
        tables: (P, 16, 16) int8 by pass, type and code.
        factors: (P, 16), what the sums of each pass and type are multiplied with.
    """
    code, ids, steps = _operands(codes, types, scale, xq.shape[-1])
    y = np.zeros((*xq.shape[:-1], len(bias)))
    with np.errstate(invalid="ignore", over="ignore"):
        for g in range(len(steps)):
            inside = slice(g * group, (g + 1) * group)
            x, of_group = xq[..., inside].astype(np.float64), code[:, inside]
            # Products of int8 and their sums are exact in float64.
            total = sum(
                (x @ table[ids[g][:, None], of_group].astype(np.float64).T) * factor[ids[g]]
                for table, factor in zip(tables, factors, strict=True)
            )
            y += total * steps[g] * sx[..., g % sx.shape[-1], None].astype(np.float64)
        return np.asarray((y + bias.astype(np.float64)).astype(np.float32).astype(bias.dtype))


def row_halves(
    codes: np.ndarray, types: np.ndarray, scale: np.ndarray, table: np.ndarray, columns: int, *, group: int
) -> np.ndarray:
    """Return w (N, K) of ``table``'s type with each weight rounded once, scale and all: what kernels multiply by for
    many tokens.

    Args:
        table: (16, 16) float16 or bfloat16, to which ``scale`` is rounded, too.
        columns: K.
    """
    code, ids, steps = _operands(codes, types, scale, columns)
    of_column = np.arange(columns) // group
    with np.errstate(over="ignore", under="ignore"):
        w = table[ids[of_column].T, code].astype(np.float32) * steps.astype(table.dtype).astype(np.float32)[of_column].T
        return np.asarray(w.astype(table.dtype))


def row_bytes(
    codes: np.ndarray, types: np.ndarray, scale: np.ndarray, table: np.ndarray, columns: int, *, group: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return int8 (N, K) and a scale (N,) float32 whose product is w to half a 127th of its row's largest: what kernels
    multiply by for many tokens.

    Args:
        table: (16, 16) int8, of 128ths.
        columns: K.
    """
    code, ids, steps = _operands(codes, types, scale, columns)
    steps = steps.astype(np.float32)
    largest = (steps * np.abs(table.astype(np.float32)).max(1)[ids]).max(0)
    with np.errstate(divide="ignore"):
        ratio = steps * np.where(largest > 0, np.float32(127) / largest, np.float32(0))
    of_column = np.arange(columns) // group
    # In float64 the product is exact and rounds once, to even.
    w = np.rint(table[ids[of_column].T, code].astype(np.float64) * ratio[of_column].T)
    return w.astype(np.int8), largest / np.float32(127 * 128)


def _operands(codes: np.ndarray, types: np.ndarray, scale: np.ndarray, k: int) -> tuple[np.ndarray, ...]:
    """Return codes (N, K) and ids (G, N) uint8, and the scale (G, N) float64."""
    code = unpack_int4(codes, k).view(np.uint8) & np.uint8(15)
    return code, unpack_types(types, scale.shape[1]), scale.astype(np.float64)
