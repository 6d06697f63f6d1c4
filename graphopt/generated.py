"""Kernels that the plugin library generates for a format of vector-quantized weights. Needs no GPU."""

__all__ = ["generate"]

import ctypes
import json
from collections.abc import Sequence
from typing import Any

#: Room for the numbers of a format's kernels, as JSON, or for the sentence that says why it has none.
_TEXT_BYTES = 1 << 14


def generate(library: ctypes.CDLL, dtype: int, sizes: Sequence[int], capability: int) -> tuple[dict[str, Any], str]:
    """Make the kernels of a format, and have the linears of that format in this process run them.

    Args:
        library: libgraphopt_plugins.so.
        dtype: of the activations, as the C API numbers types.
        sizes: N, K, v, b, r, and the rows and columns that share codebooks.
        capability: compute capability, 90 for 9.0.

    Returns:
        The kernels' numbers, as the library describes them; without kernels, why there are none, "" where the format
        has kernels of its own.

    Raises:
        AttributeError: the library has no such call.
    """
    long, number = ctypes.c_int64, ctypes.c_int32
    call = library.graphopt_vq_generate
    call.argtypes = [
        number, long, long, number, number, number, long, long, number,
        ctypes.c_void_p, long, ctypes.c_char_p, long,
    ]  # fmt: skip
    call.restype = long
    text = ctypes.create_string_buffer(_TEXT_BYTES)
    made = call(dtype, *sizes, capability, None, 0, text, len(text))
    return (json.loads(text.value), "") if made else ({}, text.value.decode())
