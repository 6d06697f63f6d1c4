// The mma of outlier channels for each T, one step of 32 bytes along the capacity.
#pragma once

#include <cstdint>

#include "common/ptx.cuh"
#include "common/vec.cuh"

namespace graphopt::mixq {

constexpr int kStepBytes = 32;  // bytes of K of one mma, of int8 and of T alike

/// c += a b over 32 bytes of T along the capacity.
template <class T>
__device__ __forceinline__ void mma_outliers(float (&c)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1);

template <>
__device__ __forceinline__ void mma_outliers<__half>(float (&c)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
  mma_f16(c, a, b0, b1);
}

template <>
__device__ __forceinline__ void mma_outliers<__nv_bfloat16>(float (&c)[4], uint32_t const (&a)[4], uint32_t b0,
                                                            uint32_t b1) {
  mma_bf16(c, a, b0, b1);
}

/// float32 as high + low TF32: the three products that matter keep 21 bits of the product's fraction.
struct SplitTf32 {
  uint32_t high;
  uint32_t low;

  __device__ __forceinline__ explicit SplitTf32(uint32_t bits) {
    constexpr uint32_t kTf32Bits = 0xffffe000u;
    float const x = __uint_as_float(bits);
    high = round_to_tf32(x) & kTf32Bits;
    low = round_to_tf32(x - __uint_as_float(high));
  }
};

template <>
__device__ __forceinline__ void mma_outliers<float>(float (&c)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
  uint32_t high[4], low[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    SplitTf32 const split(a[i]);
    high[i] = split.high;
    low[i] = split.low;
  }
  SplitTf32 const first(b0), second(b1);
  mma_tf32(c, low, first.high, second.high);
  mma_tf32(c, high, first.low, second.low);
  mma_tf32(c, high, first.high, second.high);
}

}  // namespace graphopt::mixq
