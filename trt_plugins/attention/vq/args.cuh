// AttentionArgs over a cache of codes.
#pragma once

#include <cstdint>

#include "attention/args.cuh"

namespace graphopt::attention {

constexpr int kEntries = 256;  // of a codebook: codes are bytes

template <class T>
struct VqArgs {
  AttentionArgs<T> cache;             // k and v are codes [B, Hkv, C, D / vector]
  int32_t vector;                     // channels of a code
  T const* __restrict__ codebook_k;   // [Hkv, D / vector, 256, vector]
  T const* __restrict__ codebook_v;
};

/// A cache of codes, for the kernel that reads element by element.
template <class T>
struct Coded {
  int32_t head_size;
  int32_t vector;
  T const* codebook;

  /// As Plain::get.
  __device__ __forceinline__ float get(void const* cache, int64_t row, int32_t h, int32_t column) const {
    int32_t const groups = head_size / vector, group = column / vector;
    int32_t const code = static_cast<uint8_t const*>(cache)[row * groups + group];
    return to_float(codebook[((int64_t{h} * groups + group) * kEntries + code) * vector + column % vector]);
  }
};

}  // namespace graphopt::attention
