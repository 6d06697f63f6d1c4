// Sums, and sums of squares, of the elements that a warp holds.
//
// Those of 16 bits are squared by tensor cores, exactly, and added in float32: the product of a row of elements with
// itself is on the diagonal of the operand's product with its own transpose, and the lanes hold both alike. Their sums
// are the product with ones.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/ptx.cuh"
#include "common/reduce.cuh"
#include "common/vec.cuh"

namespace graphopt {

/// The same in all lanes.
template <class T, int kVecs>
__device__ __forceinline__ float warp_squares(Vec<T> const (&v)[kVecs]) {
  if constexpr (sizeof(T) == 4) {
    float sum[2] = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
#pragma unroll
      for (int e = 0; e < Vec<T>::kSize; ++e) sum[e % 2] = fmaf(v[i].get(e), v[i].get(e), sum[e % 2]);
    }
    return warp_reduce<Add>(sum[0] + sum[1]);
  } else {
    float even[4] = {0.0f, 0.0f, 0.0f, 0.0f}, odd[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
#pragma unroll
      for (int w = 0; w < 4; w += 2) {
        uint32_t const first = v[i].word[w], second = v[i].word[w + 1];
        mma_eight<T>(even, first, second, first);  // rows 0..7 of the diagonal: squares of the first
        mma_eight<T>(odd, first, second, second);  // rows 8..15: of the second
      }
    }
    int const lane = static_cast<int>(threadIdx.x) % kWarp, quad = lane / 4;
    float const diagonal = quad % 2 == 0 ? even[0] + odd[2] : even[1] + odd[3];
    return warp_reduce<Add>(lane % 4 == quad / 2 ? diagonal : 0.0f);
  }
}

/// The same in all lanes.
template <class T, int kVecs>
__device__ __forceinline__ float warp_sum(Vec<T> const (&v)[kVecs]) {
  if constexpr (sizeof(T) == 4) {
    float sum[2] = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
#pragma unroll
      for (int e = 0; e < Vec<T>::kSize; ++e) sum[e % 2] += v[i].get(e);
    }
    return warp_reduce<Add>(sum[0] + sum[1]);
  } else {
    uint32_t const ones = round_pair<T>(1.0f, 1.0f);
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
#pragma unroll
      for (int w = 0; w < 4; w += 2) mma_eight<T>(sums, v[i].word[w], v[i].word[w + 1], ones);
    }
    float sum = sums[0] + sums[2];  // of a quad's elements, in each of its lanes
#pragma unroll
    for (int offset = 4; offset < kWarp; offset *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    return sum;
  }
}

}  // namespace graphopt
