// Eight query rows in registers, in the layout of an mma's B, as float16.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "attention/append.cuh"
#include "attention/mant/products.cuh"
#include "common/ptx.cuh"
#include "common/vec.cuh"

namespace graphopt::attention {

template <class T, int kGroups>
class MantQueries {
 public:
  /// Row lane / 4 of the rows at `q`; zeros where that is null. `scale`: to be divided out of products with rows 2 t and
  /// 2 t + 1, t = lane % 4.
  ///   cos, sin: tables of the row's position to rotate it by, or null.
  __device__ __forceinline__ void load(T const* q, int t, float (&scale)[2], T const* cos = nullptr,
                                       T const* sin = nullptr) {
    load_row(q, t, words_);
    if constexpr (kGroups == 2) {
      if (cos != nullptr) rotate(cos, sin, t);
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

  /// A row in that layout; zeros where it is null.
  __device__ __forceinline__ static void load_row(T const* row, int t, uint32_t (&words)[4 * kGroups][2]) {
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        int const column = group * kMantPage + mant_place(t) + 2 * s;
        uint32_t const* const own = reinterpret_cast<uint32_t const*>(row + column);
        // 16 columns further on
        uint32_t const low = row != nullptr ? own[0] : 0u, high = row != nullptr ? own[8] : 0u;
        words[group * 4 + s][0] = permute_bytes(low, high, 0x5410u);
        words[group * 4 + s][1] = permute_bytes(low, high, 0x7632u);
      }
    }
  }

  /// Rotate the row: a half of it is a group, so that a lane has both elements of a pair.
  __device__ __forceinline__ void rotate(T const* cos, T const* sin, int t) {
    uint32_t c[4 * kGroups][2], s[4 * kGroups][2];
    load_row(cos, t, c);
    load_row(sin, t, s);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int next = 0; next < 2; ++next) {
        float low[2], high[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float const x = element(words_[i][next], e), y = element(words_[4 + i][next], e);
          low[e] = rotated_value(x, -y, element(c[i][next], e), element(s[i][next], e));
          high[e] = rotated_value(y, x, element(c[4 + i][next], e), element(s[4 + i][next], e));
        }
        words_[i][next] = round_pair<T>(low[0], low[1]);
        words_[4 + i][next] = round_pair<T>(high[0], high[1]);
      }
    }
  }

  /// One of a pair of T.
  __device__ __forceinline__ static float element(uint32_t pair, int e) {
    Vec<T> both;
    both.word[0] = pair;
    return both.get(e);
  }

  uint32_t words_[4 * kGroups][2];
};

}  // namespace graphopt::attention
