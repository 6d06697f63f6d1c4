"""The bit stream of codes, and what codes stand for."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from graphopt.passes.vq import numerics

seeds = st.integers(0, 2**32 - 1)


@given(seed=seeds, rows=st.integers(1, 5), count=st.integers(1, 70), bits=st.integers(1, numerics.MAX_BITS))
def test_packing_is_taken_back(seed: int, rows: int, count: int, bits: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (rows, count))
    packed = numerics.pack_codes(codes, bits)
    assert packed.dtype == np.int8
    assert packed.shape == (rows, numerics.row_bytes(count, bits))
    assert packed.shape[1] % numerics.ROW_BYTES == 0
    assert 8 * packed.shape[1] < count * bits + 8 * numerics.ROW_BYTES
    np.testing.assert_array_equal(numerics.unpack_codes(packed, bits, count), codes)


@given(seed=seeds, bits=st.integers(1, numerics.MAX_BITS))
def test_bytes_of_any_content_are_valid_codes(seed: int, bits: int) -> None:
    """A damaged file can hold wrong codes, but none that is out of range."""
    packed = np.random.default_rng(seed).integers(-128, 128, (3, 48)).astype(np.int8)
    codes = numerics.unpack_codes(packed, bits, 8 * 48 // bits)
    assert codes.min() >= 0
    assert codes.max() < 1 << bits


def test_the_layouts_that_kernels_read() -> None:
    eight = numerics.pack_codes(np.array([[0x12, 0xFE]]), 8).view(np.uint8)
    np.testing.assert_array_equal(eight[0, :3], [0x12, 0xFE, 0])
    twelve = numerics.pack_codes(np.array([[0xABC, 0x123]]), 12).view(np.uint8)
    np.testing.assert_array_equal(twelve[0, :4], [0xBC, 0x3A, 0x12, 0])
    sixteen = numerics.pack_codes(np.array([[0xABCD]]), 16).view(np.uint8)
    np.testing.assert_array_equal(sixteen[0, :3], [0xCD, 0xAB, 0])


@given(
    seed=seeds,
    rows=st.integers(1, 20),
    positions=st.integers(1, 12),
    residuals=st.integers(1, 4),
    v=st.sampled_from(numerics.VECTORS),
    tile=st.sampled_from([16, 32, 256]),
)
def test_decoding_is_the_sum_of_the_entries(
    seed: int, rows: int, positions: int, residuals: int, v: int, tile: int
) -> None:
    rng = np.random.default_rng(seed)
    tiles = -(-rows // tile), -(-positions * v // tile)
    books = rng.standard_normal((*tiles, residuals, 8, v)).astype(np.float16)
    codes = rng.integers(0, 8, (rows, positions, residuals))
    got = numerics.decode(codes, books, tile, tile)
    assert got.shape == (rows, positions * v)
    n, k = rng.integers(rows), rng.integers(positions * v)
    expected = sum(np.float32(books[n // tile, k // tile, i, codes[n, k // v, i], k % v]) for i in range(residuals))
    np.testing.assert_allclose(got[n, k], expected, rtol=1e-6, atol=1e-6)
