// Stores of packed 4-bit codes, see common/packing.h.
#pragma once

#include <cstdint>

#include "common/packing.h"
#include "mixq/quantize/codes.cuh"

namespace graphopt::mixq {

/// Store the codes of a row's vector `vector`, which are 0 past the end of the row. All lanes of a warp call it, with
/// consecutive vectors from a multiple of 32: half of the lanes get the other half's codes and store both.
template <class T>
__device__ __forceinline__ void store_packed(int8_t* row, int32_t vector, typename Codes<T>::Packed codes,
                                             int32_t cols) {
  constexpr int kSize = Vec<T>::kSize;
  constexpr int kPartner = kPackedBytes / kSize;  // how far off the lane with the other halves of the bytes is
  auto const merged = [](uint32_t low) {
    uint32_t const high = __shfl_xor_sync(0xffffffffu, low, kPartner);
    return (low & 0x0f0f0f0fu) | (high & 0x0f0f0f0fu) << 4;
  };
  typename Codes<T>::Packed both;
  if constexpr (kSize == 8) {
    both = make_uint2(merged(codes.x), merged(codes.y));
  } else {
    both = merged(codes);
  }
  int32_t const channel = vector * kSize, within = channel % kPackedCodes;
  if (within < kPackedBytes && channel - within < cols) {
    *reinterpret_cast<typename Codes<T>::Packed*>(row + (channel - within) / 2 + within) = both;
  }
}

}  // namespace graphopt::mixq
