"""What the C API of attention over a cache refuses, and the scratch memory that it asks for: no GPU is touched."""

import ctypes
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

POINTER, FLOAT32, FLOAT16, INT8 = 1 << 20, 0, 1, 3
OK, NULL, MISALIGNED, BAD_SHAPE, BAD_TYPE, _, TOO_LARGE = range(7)
SIZES = ("batch", "seq", "heads", "kv_heads", "head_size", "capacity")
OPERANDS = ("q", "k", "v", "cos", "sin", "past_k", "past_v", "start", "y", "present_k", "present_v", "workspace")


@pytest.fixture(scope="module")
def lib(library: Path) -> ctypes.CDLL:
    lib = ctypes.CDLL(str(library))
    lib.graphopt_cached_attention_workspace.restype = ctypes.c_int64
    return lib


def _call(lib: ctypes.CDLL, **changes: int | None) -> int:
    """Status of a call with one problem; operands are addresses that must not be read."""
    a: dict[str, int | None] = {"dtype": FLOAT16, "batch": 2, "seq": 1, "heads": 8, "kv_heads": 2, "head_size": 64}
    a |= {"capacity": 128, "vector": 0, "tables": 1, "rotary": 1, "codebook_k": POINTER, "codebook_v": POINTER}
    a |= dict.fromkeys(OPERANDS, POINTER)
    a |= changes
    sizes = [ctypes.c_int64(a[name]) for name in SIZES]
    before = [ctypes.c_void_p(a[name]) for name in OPERANDS[:5]]
    after = [ctypes.c_void_p(a[name]) for name in OPERANDS[5:]]
    rest = (ctypes.c_int64(a["tables"]), ctypes.c_int32(a["rotary"]), ctypes.c_float(0.125))
    if not a["vector"]:
        return int(lib.graphopt_cached_attention(a["dtype"], *sizes, *rest, *before, *after, None))
    books = [ctypes.c_void_p(a[name]) for name in ("codebook_k", "codebook_v")]
    vector = ctypes.c_int64(a["vector"])
    return int(lib.graphopt_vq_attention(a["dtype"], *sizes, vector, *rest, *before, *books, *after, None))


def _workspace(lib: ctypes.CDLL, dtype: int, *sizes: int) -> int:
    return int(lib.graphopt_cached_attention_workspace(dtype, *map(ctypes.c_int64, sizes)))


@pytest.mark.parametrize("vector", [0, 2, 4])
@pytest.mark.parametrize(
    ("status", "changes"),
    [
        (BAD_TYPE, {"dtype": INT8}),
        (BAD_SHAPE, {"batch": -1}),
        (BAD_SHAPE, {"seq": -1}),
        (BAD_SHAPE, {"heads": 7}),
        (BAD_SHAPE, {"kv_heads": 0}),
        (BAD_SHAPE, {"capacity": 0}),
        (BAD_SHAPE, {"head_size": 0}),
        (BAD_SHAPE, {"tables": 3}),
        (TOO_LARGE, {"head_size": 1 << 13}),
        (TOO_LARGE, {"capacity": 1 << 31}),
        (TOO_LARGE, {"batch": 1 << 20, "seq": 1 << 12}),
        (NULL, {"q": None}),
        (NULL, {"start": None}),
        (NULL, {"workspace": None}),
        (NULL, {"present_v": None}),
        (NULL, {"cos": None}),
        (MISALIGNED, {"k": POINTER + 1}),
        (MISALIGNED, {"start": POINTER + 2}),
        (MISALIGNED, {"workspace": POINTER + 8}),
        (OK, {"batch": 0, "q": None}),
    ],
)
def test_refusals(lib: ctypes.CDLL, vector: int, status: int, changes: dict[str, int | None]) -> None:
    assert _call(lib, vector=vector, **changes) == status


def test_odd_head_sizes_cannot_be_rotated(lib: ctypes.CDLL) -> None:
    assert _call(lib, head_size=63, rotary=1) == BAD_SHAPE
    assert _call(lib, head_size=63, rotary=0, q=None) == NULL  # the size is accepted, tables are not asked for
    assert _call(lib, head_size=64, rotary=0, cos=None, sin=None, v=None) == NULL


@pytest.mark.parametrize(("head_size", "vector"), [(64, 3), (64, 32), (66, 4)])
def test_codes_of_other_vectors_are_refused(lib: ctypes.CDLL, head_size: int, vector: int) -> None:
    assert _call(lib, head_size=head_size, vector=vector) == BAD_SHAPE


def test_codebooks_must_be_there(lib: ctypes.CDLL) -> None:
    assert _call(lib, vector=2, codebook_k=None) == NULL
    assert _call(lib, vector=2, codebook_v=POINTER + 1) == MISALIGNED


_size = st.integers(1, 64)


@given(st.tuples(_size, _size, _size, _size, st.integers(1, 256), st.integers(1, 4096)), st.tuples(*[_size] * 3))
def test_workspace_of_larger_sizes_is_enough(
    lib: ctypes.CDLL, sizes: tuple[int, int, int, int, int, int], more: tuple[int, int, int]
) -> None:
    batch, seq, kv_heads, group, head_size, capacity = sizes
    least = _workspace(lib, FLOAT16, batch, seq, kv_heads * group, kv_heads, head_size, capacity)
    assert least >= 2 * batch * seq * kv_heads * group * head_size
    larger = (batch + more[0], seq + more[1], kv_heads * group, kv_heads, head_size, capacity + more[2])
    assert _workspace(lib, FLOAT16, *larger) >= least
    assert _workspace(lib, FLOAT32, *larger) >= _workspace(lib, FLOAT16, *larger)
