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

/// Reduces over the threads that share a row: one warp, or a whole one-dimensional block.
///
/// The block form costs one barrier. Consecutive reductions alternate between two scratch rows: a thread can write
/// the row of reduction r + 2 only after the barrier of r + 1, which every reader of r has then reached.
template <bool kOneWarp>
class RowReducer {
 public:
  /// `scratch`: 2 x 32 floats of shared memory, unused where kOneWarp.
  __device__ __forceinline__ explicit RowReducer(float* scratch) : scratch_(scratch) {}

  /// The same result in every thread of the row.
  template <class Op>
  __device__ __forceinline__ float all(float value) {
    value = warp_reduce<Op>(value);
    if constexpr (kOneWarp) return value;
    int const lane = static_cast<int>(threadIdx.x) % kWarp;
    int const warps = static_cast<int>(blockDim.x) / kWarp;
    float* row = scratch_ + kWarp * phase_;
    phase_ ^= 1;
    if (lane == 0) row[threadIdx.x / kWarp] = value;
    __syncthreads();
    return warp_reduce<Op>(lane < warps ? row[lane] : Op::kIdentity);
  }

 private:
  float* scratch_;
  int phase_ = 0;
};

}  // namespace graphopt
