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

}  // namespace graphopt::attention
