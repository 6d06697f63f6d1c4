// Reductions over a warp or a block. All are deterministic: a fixed tree of shuffles, then a fixed order of warps.
#pragma once

#include <cstdint>
#include <type_traits>

namespace graphopt {

constexpr int kWarp = 32;

struct Add {
  static constexpr float kIdentity = 0.0f;
  __device__ __forceinline__ static float apply(float a, float b) { return a + b; }
};

/// Maximum that NaN wins, unlike fmaxf; for magnitudes (no sign bit), hence the identity 0.
struct MaxNan {
  static constexpr float kIdentity = 0.0f;
  __device__ __forceinline__ static float apply(float a, float b) {
    float result;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
    return result;
  }
};

template <class Op>
__device__ __forceinline__ float warp_reduce(float value) {
  if constexpr (std::is_same_v<Op, MaxNan>) {
    // Magnitudes are ordered like their bits, NaN above infinity: one instruction instead of ten.
    return __uint_as_float(__reduce_max_sync(0xffffffffu, __float_as_uint(value)));
  } else {
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      value = Op::apply(value, __shfl_xor_sync(0xffffffffu, value, offset));
    }
    return value;
  }
}

}  // namespace graphopt
