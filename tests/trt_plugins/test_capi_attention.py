"""What the C API of attention over a cache refuses, and the scratch memory that it asks for: no GPU is touched."""

import ctypes
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

POINTER, FLOAT32, FLOAT16, INT8 = 1 << 20, 0, 1, 3
OK, NULL, MISALIGNED, BAD_SHAPE, BAD_TYPE, _, TOO_LARGE, BAD_ATTRIBUTE = range(8)
SIZES = ("batch", "seq", "heads", "kv_heads", "head_size", "capacity")
STATE = ("k", "k_meta", "v", "v_meta", "v_window", "v_scale", "sink")
OPERANDS = ("q", "k", "v", "cos", "sin", "past_k", "past_v", "start", "y", "present_k", "present_v", "workspace")


@pytest.fixture(scope="module")
def lib(library: Path) -> ctypes.CDLL:
    lib = ctypes.CDLL(str(library))
    for kind in ("cached", "coded"):
        getattr(lib, f"graphopt_{kind}_attention_workspace").restype = ctypes.c_int64
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


def _call_mant(lib: ctypes.CDLL, **changes: int | None) -> int:
    """The same of attention over a M-ANT cache; a tensor of the state is named past_NAME or present_NAME."""
    a: dict[str, int | None] = {"dtype": FLOAT16, "batch": 2, "seq": 1, "heads": 8, "kv_heads": 2, "head_size": 64}
    a |= {"capacity": 128, "group": 64, "tables": 1, "rotary": 1, "selector": 0, "k_center": POINTER}
    a |= dict.fromkeys((*OPERANDS, *(f"{side}_{name}" for side in ("past", "present") for name in STATE)), POINTER)
    a |= changes
    sizes = [ctypes.c_int64(a[name]) for name in (*SIZES, "group", "tables")]
    past, present = (
        (ctypes.c_void_p * len(STATE))(*(a[f"{side}_{name}"] for name in STATE)) for side in ("past", "present")
    )
    new = [ctypes.c_void_p(a[name]) for name in (*OPERANDS[:5], "k_center")]
    start, y, workspace = (ctypes.c_void_p(a[name]) for name in ("start", "y", "workspace"))
    flags = (a["rotary"], a["selector"], ctypes.c_float(0.125))
    rest = (past, start, y, present, workspace, None)
    return int(lib.graphopt_mant_attention(a["dtype"], *sizes, *flags, *new, *rest))


def _workspace(lib: ctypes.CDLL, kind: str, dtype: int, *sizes: int) -> int:
    return int(getattr(lib, f"graphopt_{kind}_attention_workspace")(dtype, *map(ctypes.c_int64, sizes)))


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


@pytest.mark.parametrize(
    ("status", "changes"),
    [
        (BAD_TYPE, {"dtype": INT8}),
        (BAD_SHAPE, {"heads": 7}),
        (BAD_SHAPE, {"group": 16}),
        (BAD_SHAPE, {"head_size": 96}),  # no multiple of the group
        (BAD_SHAPE, {"capacity": 100}),
        (BAD_ATTRIBUTE, {"selector": 3}),
        (TOO_LARGE, {"head_size": 1024}),
        (NULL, {"q": None}),
        (NULL, {"k_center": None}),
        (NULL, {"past_k": None}),
        (NULL, {"present_sink": None}),
        (NULL, {"workspace": None}),
        (MISALIGNED, {"k": POINTER + 1}),
        (MISALIGNED, {"present_v_scale": POINTER + 1}),
        (MISALIGNED, {"past_sink": POINTER + 1}),
        (OK, {"batch": 0, "q": None}),
    ],
)
def test_refusals_of_the_mant_cache(lib: ctypes.CDLL, status: int, changes: dict[str, int | None]) -> None:
    assert _call_mant(lib, **changes) == status


def test_the_state_must_be_given(lib: ctypes.CDLL) -> None:
    sizes = [ctypes.c_int64(n) for n in (2, 1, 8, 2, 64, 128, 64, 1)]
    pointers = [ctypes.c_void_p(POINTER)] * 6
    assert lib.graphopt_mant_attention(FLOAT16, *sizes, 1, 0, ctypes.c_float(1), *pointers, *[None] * 6) == NULL


_size = st.integers(1, 64)


@pytest.mark.parametrize("kind", ["cached", "coded"])
@given(
    sizes=st.tuples(_size, _size, _size, _size, st.integers(1, 256), st.integers(1, 4096)), more=st.tuples(*[_size] * 3)
)
def test_workspace_of_larger_sizes_is_enough(
    lib: ctypes.CDLL, kind: str, sizes: tuple[int, int, int, int, int, int], more: tuple[int, int, int]
) -> None:
    batch, seq, kv_heads, group, head_size, capacity = sizes
    least = _workspace(lib, kind, FLOAT16, batch, seq, kv_heads * group, kv_heads, head_size, capacity)
    assert least >= 2 * batch * seq * kv_heads * group * head_size
    larger = (batch + more[0], seq + more[1], kv_heads * group, kv_heads, head_size, capacity + more[2])
    assert _workspace(lib, kind, FLOAT16, *larger) >= least
    assert _workspace(lib, kind, FLOAT32, *larger) >= _workspace(lib, kind, FLOAT16, *larger)
