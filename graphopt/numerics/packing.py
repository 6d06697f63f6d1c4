"""Two 4-bit codes to a byte.

    byte[.., 16 v + i] = (code[.., 32 v + i] & 15) | (code[.., 32 v + 16 + i] << 4),    i = 0..15

so the low nibbles of a 16-byte vector are its first 16 codes and the high ones its last 16. A kernel that separates
the nibbles of a word has four consecutive codes in each half: the layout that tensor cores take int8 operands in.
Codes are two's complement in -8..7, of which symmetric quantization uses -7..7. Bytes are int8: TensorRT's parser
widens uint8 to int32. Rows are padded with zero codes to a multiple of `PACK_STEP`, so that every packed row is a whole
number of 16-byte vectors and starts aligned, whatever K is.
"""

__all__ = ["PACK_STEP", "pack_int4", "packed_bytes", "unpack_int4"]

import numpy as np

#: Codes in the 16 bytes of one vector load.
PACK_STEP = 32


def packed_bytes(channels: int) -> int:
    """Return the bytes of a packed row of ``channels`` codes, padding included."""
    return -(-channels // PACK_STEP) * PACK_STEP // 2


def pack_int4(codes: np.ndarray) -> np.ndarray:
    """Pack the last axis.

    Args:
        codes: (..., K) int8 in -8..7.

    Returns:
        (..., packed_bytes(K)) int8.
    """
    channels = codes.shape[-1]
    padding = [(0, 0)] * (codes.ndim - 1) + [(0, 2 * packed_bytes(channels) - channels)]
    nibbles = np.pad(codes, padding).view(np.uint8) & np.uint8(15)
    half = PACK_STEP // 2
    vectors = nibbles.reshape(*codes.shape[:-1], nibbles.shape[-1] // PACK_STEP, 2, half)
    packed = vectors[..., 0, :] | (vectors[..., 1, :] << np.uint8(4))
    return packed.view(np.int8).reshape(*codes.shape[:-1], packed_bytes(channels))


def unpack_int4(packed: np.ndarray, channels: int) -> np.ndarray:
    """Return the first ``channels`` codes of each row: (..., B) int8 -> (..., channels) int8 in -8..7."""
    # An arithmetic shift right carries the sign of the upper nibble; the lower one is first moved up.
    low, high = (packed << np.int8(4)) >> np.int8(4), packed >> np.int8(4)
    vectors = (*packed.shape[:-1], packed.shape[-1] * 2 // PACK_STEP, PACK_STEP // 2)
    codes = np.concatenate([low.reshape(vectors), high.reshape(vectors)], axis=-1)
    codes = codes.reshape(*packed.shape[:-1], 2 * packed.shape[-1])
    return np.ascontiguousarray(codes[..., :channels])
