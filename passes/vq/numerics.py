"""VQ-LLM in numpy: what the stored form of a vector-quantized weight stands for. Ops and kernels are held to it.

VQ<v, b, r>: the row of a weight W [N, K] is cut into vectors of v consecutive columns, each the sum of r entries of
codebooks with 2^b entries of v elements:

    W[n, v j + e] ≈ s[n] · Σ_i C[g(n), h(j), i, code(n, j, i), e]           i = 0..r-1,  e = 0..v-1
    g(n) = n // tile_rows,  h(j) = v j // tile_columns                       the codebook's tile
    Y    = s (X Ĉᵀ) + bias                                                   Ĉ the sum of entries

Codes are a little-endian bit stream per row: code (j, i) takes the b bits from bit b (r j + i) on, bit p being bit
p % 8 of byte p // 8. So 8-bit codes are bytes, 16-bit ones little-endian halves, and two 12-bit ones share three bytes.
A row is padded with zeros to whole 16-byte vectors. Every pattern of bits is a valid code: no index is out of range.
"""

__all__ = ["MAX_BITS", "ROW_BYTES", "VECTORS", "decode", "linear", "pack_codes", "row_bytes", "unpack_codes"]

import numpy as np

#: Vector sizes v that exist.
VECTORS = (2, 4, 8, 16)
#: Largest b.
MAX_BITS = 16
#: Rows of codes are padded to a multiple of this, the bytes of one vector load.
ROW_BYTES = 16


def row_bytes(codes: int, bits: int) -> int:
    """Return the bytes of a row of ``codes`` codes of ``bits`` bits, padding included."""
    return -(-codes * bits // (8 * ROW_BYTES)) * ROW_BYTES


def pack_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack rows of codes: (N, J) integers below 2^bits -> (N, row_bytes(J, bits)) int8."""
    rows, count = codes.shape
    if bits == 8:
        stream = codes.astype(np.uint8)
    else:
        shifts = np.arange(bits, dtype=np.uint32)
        each = ((codes.astype(np.uint32)[..., None] >> shifts) & 1).astype(np.uint8)
        stream = np.packbits(each.reshape(rows, count * bits), axis=1, bitorder="little")
    padded = np.zeros((rows, row_bytes(count, bits)), np.uint8)
    padded[:, : stream.shape[1]] = stream
    return padded.view(np.int8)


def unpack_codes(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Return the first ``count`` codes of each row: (N, B) int8 -> (N, count) int32."""
    stream = np.concatenate([packed.view(np.uint8), np.zeros((len(packed), 3), np.uint8)], axis=1).astype(np.uint32)
    first = np.arange(count) * bits
    byte, shift = first // 8, (first % 8).astype(np.uint32)
    # A code of up to 16 bits that starts anywhere in a byte lies within three bytes.
    word = stream[:, byte] | (stream[:, byte + 1] << 8) | (stream[:, byte + 2] << 16)
    return ((word >> shift) & ((1 << bits) - 1)).astype(np.int32)


def decode(codes: np.ndarray, codebooks: np.ndarray, tile_rows: int, tile_columns: int) -> np.ndarray:
    """Return the sums of entries Ĉ.

    Args:
        codes: (N, J, r) integers.
        codebooks: (Gn, Gk, r, 2^b, v) float16.
        tile_rows, tile_columns: rows and columns of the weight that share codebooks; columns a multiple of v.

    Returns:
        (N, J·v) float32.
    """
    rows, positions, residuals = codes.shape
    v = codebooks.shape[-1]
    g = np.arange(rows)[:, None] // tile_rows
    h = np.arange(positions) * v // tile_columns
    books = codebooks.astype(np.float32)
    total = np.zeros((rows, positions, v), np.float32)
    for i in range(residuals):
        total += books[g, h, i, codes[:, :, i]]
    return total.reshape(rows, positions * v)


def linear(x: np.ndarray, c: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return T(s · (x @ cᵀ) + bias), rounded once: x (..., K) T, c (N, K) float32, scale (N,) float32, bias (N,) T."""
    with np.errstate(invalid="ignore", over="ignore"):
        y = (x.astype(np.float32) @ c.T) * scale + bias.astype(np.float32)
        return np.asarray(y.astype(x.dtype))
