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


def test_a_vector_holds_its_first_half_in_the_low_nibbles() -> None:
    codes = np.zeros((1, 70), np.int8)
    codes[0, [0, 1, 16, 17, 32, 48, 69]] = 1, -7, -1, 7, -8, 5, 3
    packed = pack_int4(codes).view(np.uint8)[0]
    assert packed[[0, 1, 16, 37]].tolist() == [0xF1, 0x79, 0x58, 0x03]


def test_every_byte_is_two_codes() -> None:
    every = np.arange(-128, 128).astype(np.int8)
    codes = unpack_int4(every[None], 512)[0].astype(np.int64)
    low, high = codes.reshape(-1, 2, PACK_STEP // 2).transpose(1, 0, 2).reshape(2, -1)
    np.testing.assert_array_equal(low % 16 + 16 * high, every)


@pytest.mark.parametrize(("channels", "expected"), [(0, 0), (1, 16), (31, 16), (32, 16), (33, 32), (576, 288)])
def test_rows_are_whole_vectors(channels: int, expected: int) -> None:
    assert packed_bytes(channels) == expected
    assert packed_bytes(channels) % (PACK_STEP // 2) == 0
