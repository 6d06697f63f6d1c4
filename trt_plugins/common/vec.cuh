// Activation types on the device: conversion to and from float, and 16-byte vectors of them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace graphopt {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

/// Sums of two pairs of 16-bit values. One rounding to T, as through float32: its 24 bits are enough for the second
/// rounding to change nothing (Figueroa, 1995). bfloat16 has no addition of pairs on compute capability 8.0, so a
/// multiply-add by ones does it.
template <class T>
__device__ __forceinline__ uint32_t add_pair(uint32_t a, uint32_t b) {
  uint32_t sum;
  if constexpr (std::is_same_v<T, __half>) {
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(sum) : "r"(a), "r"(b));
  } else {
    constexpr uint32_t kOnes = 0x3f803f80u;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(kOnes), "r"(b));
  }
  return sum;
}

/// Two floats rounded to a 16-bit T, `low` in the low half. In assembly, because the compiler otherwise takes the word
/// apart again for every later use of a half.
template <class T>
__device__ __forceinline__ uint32_t round_pair(float low, float high) {
  uint32_t word;
  if constexpr (std::is_same_v<T, __half>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  }
  return word;
}

/// Sixteen bytes of T held as four 32-bit words, so that the compiler keeps them in registers.
template <class T>
struct Vec {
  static constexpr int kSize = 16 / static_cast<int>(sizeof(T));  // elements
  static constexpr int kPerWord = 4 / static_cast<int>(sizeof(T));

  uint32_t word[4] = {0, 0, 0, 0};

  /// Element `i` as float; `i` must be a compile-time constant after unrolling.
  __device__ __forceinline__ float get(int i) const {
    if constexpr (sizeof(T) == 4) {
      return __uint_as_float(word[i]);
    } else {
      uint16_t const bits = static_cast<uint16_t>(word[i / 2] >> (16 * (i % 2)));
      T value;
      memcpy(&value, &bits, sizeof(value));
      return to_float(value);
    }
  }

  /// Element `i` with its bits unchanged.
  __device__ __forceinline__ T raw(int i) const {
    if constexpr (sizeof(T) == 4) {
      return __uint_as_float(word[i]);
    } else {
      uint16_t const bits = static_cast<uint16_t>(word[i / 2] >> (16 * (i % 2)));
      T value;
      memcpy(&value, &bits, sizeof(value));
      return value;
    }
  }

  __device__ __forceinline__ void clear(int i) {
    if constexpr (sizeof(T) == 4) {
      word[i] = 0;
    } else {
      word[i / 2] &= i % 2 == 0 ? 0xffff0000u : 0x0000ffffu;
    }
  }

  /// Round kSize floats to T.
  __device__ __forceinline__ void set(float const (&value)[kSize]) {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      if constexpr (sizeof(T) == 4) {
        word[w] = __float_as_uint(value[w]);
      } else {
        word[w] = round_pair<T>(value[2 * w], value[2 * w + 1]);
      }
    }
  }
};

/// Forget the floats that were made of `v`: to make them again costs less than the registers to keep them.
template <class T, int kCount>
__device__ __forceinline__ void keep_packed(Vec<T> (&v)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
#pragma unroll
    for (int w = 0; w < 4; ++w) asm volatile("" : "+r"(v[i].word[w]));
  }
}

/// `value`, unknown to the compiler, so that what is made of it is made again in every turn of a loop instead of kept.
__device__ __forceinline__ int32_t opaque(int32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}

/// Load 16 bytes that this kernel reads once: they should not push reused lines out of L1.
template <class T>
__device__ __forceinline__ Vec<T> load_streaming(T const* pointer) {
  Vec<T> v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
               : "l"(pointer));
  return v;
}

/// Load 16 bytes that other blocks read too.
template <class T>
__device__ __forceinline__ Vec<T> load_cached(T const* pointer) {
  uint4 const q = __ldg(reinterpret_cast<uint4 const*>(pointer));
  Vec<T> v;
  v.word[0] = q.x, v.word[1] = q.y, v.word[2] = q.z, v.word[3] = q.w;
  return v;
}

/// The same, not to be moved behind a barrier that follows.
template <class T>
__device__ __forceinline__ Vec<T> load_pinned(T const* pointer) {
  Vec<T> v;
  asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
               : "l"(pointer));
  return v;
}

/// Load 16 bytes that may be written by this kernel.
template <class T>
__device__ __forceinline__ Vec<T> load(T const* pointer) {
  uint4 const q = *reinterpret_cast<uint4 const*>(pointer);
  Vec<T> v;
  v.word[0] = q.x, v.word[1] = q.y, v.word[2] = q.z, v.word[3] = q.w;
  return v;
}

template <class T>
__device__ __forceinline__ void store(T* pointer, Vec<T> const& v) {
  *reinterpret_cast<uint4*>(pointer) = make_uint4(v.word[0], v.word[1], v.word[2], v.word[3]);
}

}  // namespace graphopt
