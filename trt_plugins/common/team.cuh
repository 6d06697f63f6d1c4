// The threads that share a row, and reductions over them. All are deterministic: a fixed tree of shuffles, then a fixed
// order of warps.
#pragma once

#include <cstdint>

#include "common/ptx.cuh"
#include "common/reduce.cuh"

namespace graphopt {

/// One warp, or the threads of a block with one threadIdx.y: blockDim.x of them, a multiple of 32.
///
/// A reduction of several warps costs one barrier. Consecutive ones alternate between two rows of scratch memory: a
/// thread can write the row of reduction r + 2 only after the barrier of r + 1, which every reader of r has then
/// reached.
///
/// kWholeBlock: all teams of a block wait for each other, all make the same reductions. A barrier whose number is known
/// only at run time counts as sixteen, of which a multiprocessor has room for four blocks'.
template <bool kOneWarp, bool kWholeBlock = false>
class Team {
 public:
  static constexpr int kScratch = 2 * kWarp;  // of a block

  /// `scratch`: kScratch elements of shared memory, unused where kOneWarp.
  __device__ __forceinline__ explicit Team(float2* scratch) {
    if constexpr (!kOneWarp) {
      warps_ = static_cast<int>(blockDim.x) / kWarp;
      lane_ = static_cast<int>(threadIdx.x) % kWarp;
      mine_ = scratch + (threadIdx.y * blockDim.x + threadIdx.x) / kWarp;
      given_ = scratch + threadIdx.y * warps_ + lane_;
    }
  }

  /// Sum, the same in every thread.
  __device__ __forceinline__ float sum(float value) { return sum_of_warps(warp_reduce<Add>(value)); }

  /// Sum over the warps of what each gives, the same in all its lanes. The same in every thread.
  __device__ __forceinline__ float sum_of_warps(float value) {
    if constexpr (kOneWarp) return value;
    return warp_reduce<Add>(exchange(value));
  }

  /// Two such sums.
  __device__ __forceinline__ float2 sums_of_warps(float2 values) {
    if constexpr (kOneWarp) return values;
    float2 const given = exchange(values);
    return {warp_reduce<Add>(given.x), warp_reduce<Add>(given.y)};
  }

  /// Maximum of magnitudes; NaN wins. The same in every thread.
  __device__ __forceinline__ float max_nan(float value) {
    value = warp_reduce<MaxNan>(value);
    if constexpr (kOneWarp) return value;
    return warp_reduce<MaxNan>(exchange(value));
  }

  /// Lane l of every warp gets what warp l of the team gave (the same in all its lanes), or zeros if there is none.
  /// Value: float or float2.
  template <class Value>
  __device__ __forceinline__ Value exchange(Value value) {
    if (lane_ == 0) *reinterpret_cast<Value*>(mine_ + phase_) = value;
    if constexpr (kWholeBlock) {
      __syncthreads();
    } else {
      asm volatile("bar.sync %0, %1;" ::"r"(threadIdx.y), "r"(blockDim.x) : "memory");
    }
    Value given{};
    if (lane_ < warps_) given = *reinterpret_cast<Value*>(given_ + phase_);
    phase_ ^= kWarp;
    return given;
  }

 private:
  float2* mine_ = nullptr;
  float2* given_ = nullptr;
  int warps_ = 1;
  int lane_ = 0;
  int phase_ = 0;  // 0 or 32
};

}  // namespace graphopt
