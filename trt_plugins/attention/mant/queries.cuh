// Eight query rows in registers, in the layout of an mma's B, as float16.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "attention/mant/products.cuh"
#include "common/ptx.cuh"
#include "common/vec.cuh"

namespace graphopt::attention {

template <class T, int kGroups>
class MantQueries {
 public:
  /// Row lane / 4 of the rows at `q`; zeros where that is null. `scale`: to be divided out of products with rows 2 t and
  /// 2 t + 1, t = lane % 4.
  __device__ __forceinline__ void load(T const* q, int t, float (&scale)[2]) {
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        int const column = group * kMantPage + mant_place(t) + 2 * s;
        uint32_t const* const own = reinterpret_cast<uint32_t const*>(q + column);
        uint32_t const low = q != nullptr ? own[0] : 0u, high = q != nullptr ? own[8] : 0u;  // 16 columns further on
        words_[group * 4 + s][0] = permute_bytes(low, high, 0x5410u);
        words_[group * 4 + s][1] = permute_bytes(low, high, 0x7632u);
      }
    }
    if constexpr (!std::is_same_v<T, __half>) halve_range(t, scale);
  }

  /// B operands of the four steps of a group.
  __device__ __forceinline__ uint32_t const (*steps(int group) const)[2] { return &words_[group * 4]; }

  /// Product of row lane / 4 with key - center, both [D].
  __device__ __forceinline__ float dot(T const* key, T const* center, int t) const {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 4 * kGroups; ++i) {
#pragma unroll
      for (int next = 0; next < 2; ++next) {
        int const column = i / 4 * kMantPage + mant_place(t) + 2 * (i % 4) + next;
        __half2 pair;
        memcpy(&pair, &words_[i][next], sizeof(pair));
        float2 const q = __half22float2(pair);
        sum += q.x * (to_float(key[column]) - to_float(center[column]));
        sum += q.y * (to_float(key[column + 16]) - to_float(center[column + 16]));
      }
    }
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    return sum + __shfl_xor_sync(0xffffffffu, sum, 2);
  }

 private:
  /// Queries of bfloat16 become float16, divided by a power of two that the scale makes up for: codes are exact there.
  __device__ __forceinline__ void halve_range(int t, float (&scale)[2]) {
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < 4 * kGroups; ++i) {
#pragma unroll
      for (int next = 0; next < 2; ++next) {
        largest = max(largest, max(words_[i][next] << 16 & 0x7fffffffu, words_[i][next] & 0x7fff0000u));
      }
    }
    largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
    largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
    int const exponent = min(max(static_cast<int>(largest >> 23), 16), 240) - 127;
    float const divisor = __uint_as_float(static_cast<uint32_t>(127 - exponent) << 23);
#pragma unroll
    for (int i = 0; i < 4 * kGroups; ++i) {
#pragma unroll
      for (int next = 0; next < 2; ++next) {
        uint32_t const pair = words_[i][next];
        words_[i][next] = round_pair<__half>(__uint_as_float(pair << 16) * divisor,
                                             __uint_as_float(pair & 0xffff0000u) * divisor);
      }
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      int const power = __shfl_sync(0xffffffffu, exponent, (t * 2 + e) * 4);
      scale[e] *= __uint_as_float(static_cast<uint32_t>(127 + power) << 23);
    }
  }

  uint32_t words_[4 * kGroups][2];
};

}  // namespace graphopt::attention
