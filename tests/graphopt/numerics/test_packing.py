"""Packing of 4-bit codes: nothing is lost, and the bytes are where kernels look for them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from graphopt.numerics.packing import PACK_STEP, pack_int4, packed_bytes, unpack_int4

SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=70)


@given(codes=hnp.arrays(np.int8, SHAPES, elements=st.integers(-8, 7)))
def test_what_is_packed_comes_back(codes: np.ndarray) -> None:
    packed = pack_int4(codes)
    assert packed.dtype == np.int8
    assert packed.shape == (*codes.shape[:-1], packed_bytes(codes.shape[-1]))
    assert packed.flags.c_contiguous
    np.testing.assert_array_equal(unpack_int4(packed, codes.shape[-1]), codes)


@given(codes=hnp.arrays(np.int8, SHAPES, elements=st.integers(-8, 7)))
def test_padding_is_zero_codes(codes: np.ndarray) -> None:
    packed = pack_int4(codes)
    assert not unpack_int4(packed, 2 * packed.shape[-1])[..., codes.shape[-1] :].any()


def test_the_low_nibble_is_the_even_index() -> None:
    packed = pack_int4(np.array([[1, -1, -7, 7, -8]], np.int8))
    assert packed[0, :3].view(np.uint8).tolist() == [0xF1, 0x79, 0x08]


def test_every_byte_is_two_codes() -> None:
    every = np.arange(-128, 128).astype(np.int8)
    codes = unpack_int4(every[None], 512)[0].astype(np.int64)
    np.testing.assert_array_equal(codes[0::2] % 16 + 16 * codes[1::2], every)


@pytest.mark.parametrize(("channels", "expected"), [(0, 0), (1, 16), (31, 16), (32, 16), (33, 32), (576, 288)])
def test_rows_are_whole_vectors(channels: int, expected: int) -> None:
    assert packed_bytes(channels) == expected
    assert packed_bytes(channels) % (PACK_STEP // 2) == 0
