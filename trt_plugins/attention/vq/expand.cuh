// Keys and values of a cache of 8-bit codes, written out as T.
#pragma once

#include <cstdint>

#include "attention/expanded.cuh"
#include "attention/vq/args.cuh"

namespace graphopt::attention {

constexpr int kVqExpandThreads = 256;
constexpr int kVqExpandTokens = 128;  // of a block

/// Grid: (pieces of kVqExpandTokens tokens of the slice's sequences and heads; keys, values). Codebooks are found in L1.
/// k and v are [slice.batch, slice.kv_heads, C, D].
template <class T, int kVector>
__global__ void __launch_bounds__(kVqExpandThreads)
    attention_vq_expand(VqArgs<T> const args, Slice const slice, T* __restrict__ k, T* __restrict__ v) {
  AttentionArgs<T> const& cache = args.cache;
  uint32_t const pieces = static_cast<uint32_t>((cache.capacity + kVqExpandTokens - 1) / kVqExpandTokens);
  int32_t const first = static_cast<int32_t>(blockIdx.x % pieces) * kVqExpandTokens;
  int32_t const pair = static_cast<int32_t>(blockIdx.x / pieces);
  int32_t const b = slice.b + pair / slice.kv_heads, h = slice.h + pair % slice.kv_heads;
  int32_t const length = visible_rows(past_rows(cache.start, b, cache.capacity), cache.seq - 1, cache.capacity);
  int32_t const groups = cache.head_size / kVector, tokens = min(kVqExpandTokens, length - first);
  bool const value = blockIdx.y == 1;
  int64_t const row = (int64_t{b} * cache.kv_heads + h) * cache.capacity + first;
  uint8_t const* const codes = static_cast<uint8_t const*>(value ? cache.v : cache.k) + row * groups;
  T const* const book = (value ? args.codebook_v : args.codebook_k) + int64_t{h} * groups * kEntries * kVector;
  T* const target = (value ? v : k) + (int64_t{pair} * cache.capacity + first) * cache.head_size;
  constexpr int kWords = kVector * static_cast<int>(sizeof(T)) / 4;
  bool const words = (reinterpret_cast<uintptr_t>(book) & 3) == 0;
  for (int32_t item = static_cast<int32_t>(threadIdx.x); item < tokens * groups; item += kVqExpandThreads) {
    int32_t const entry = item % groups * kEntries + __ldg(codes + item);
    T const* const centroid = book + int64_t{entry} * kVector;
    T* const place = target + int64_t{item} * kVector;
    if (words) {
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        reinterpret_cast<uint32_t*>(place)[w] = __ldg(reinterpret_cast<uint32_t const*>(centroid) + w);
      }
    } else {
#pragma unroll
      for (int e = 0; e < kVector; ++e) place[e] = centroid[e];
    }
  }
}

}  // namespace graphopt::attention
