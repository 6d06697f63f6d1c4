// Sums, and sums of squares, of the elements that a warp holds.
//
// Those of 16 bits are squared by tensor cores, exactly, and added in float32: the product of a row of elements with
// itself is on the diagonal of the operand's product with its own transpose, and the lanes hold both alike. Their sums
// are the product with ones.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/reduce.cuh"
#include "common/vec.cuh"

namespace graphopt {

/// c += a b over 8 elements of a 16-bit T along K. Per lane, g = lane / 4, t = lane % 4: a0 elements 2t and 2t + 1 of row
/// g, a1 of row g + 8; b the same of column g; c[0..1] row g, columns 2t and 2t + 1, c[2..3] row g + 8.
template <class T>
__device__ __forceinline__ void mma_eight(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  if constexpr (std::is_same_v<T, __half>) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(b));
  } else {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(b));
  }
}

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
