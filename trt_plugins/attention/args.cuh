// What the kernels over a cache share: arguments with the element type known, and who sees what.
#pragma once

#include <cstdint>

#include "common/vec.cuh"

namespace graphopt::attention {

/// Arguments of the kernels that read the cache, once the new rows are in it. Rows of queries are (i, head) pairs of a
/// key/value head: row r is new token r / group of query head h group + r % group.
template <class T>
struct AttentionArgs {
  int32_t batch;                   // B
  int32_t seq;                     // S
  int32_t heads;                   // Hq: rows of a token in q and y
  int32_t kv_heads;                // Hkv, or fewer: those of this launch, and of the cache that it is given
  int32_t group;                   // query heads of a key/value head
  int32_t head_size;               // D
  int32_t capacity;                // C
  float scale_log2;                // scale log2(e): exponentials are powers of two
  T const* __restrict__ q;         // [B, S, Hq, D], rotated unless cos is given
  void const* __restrict__ k;      // [B, kv_heads, C, .] rows of the cache's format
  void const* __restrict__ v;      // [B, kv_heads, C, .]
  int32_t const* __restrict__ start;  // [B]
  T* __restrict__ y;               // [B, S, Hq, D]
  float* __restrict__ partial;     // parts of outputs, see PartialMemory
  int32_t* __restrict__ counters;  // [row tiles, Hkv, B], zero: parts that are done
  T const* __restrict__ cos;       // [Bc, S, D], null but for kernels that rotate q themselves
  T const* __restrict__ sin;
  int32_t tables;                  // Bc
};

/// Rows that sequence b had before this call, within [0, C].
__device__ __forceinline__ int32_t past_rows(int32_t const* start, int32_t b, int32_t capacity) {
  return min(max(__ldg(start + b), 0), capacity);
}

/// Rows that new token i of a sequence with `past` rows sees.
__device__ __forceinline__ int32_t visible_rows(int32_t past, int32_t i, int32_t capacity) {
  return min(past + i + 1, capacity);
}

/// Where row r of key/value head h of sequence b is in q and y.
template <class T>
__device__ __forceinline__ int64_t row_offset(AttentionArgs<T> const& args, int32_t b, int32_t h, int32_t r) {
  int64_t const token = int64_t{b} * args.seq + r / args.group;
  return (token * args.heads + h * args.group + r % args.group) * args.head_size;
}

}  // namespace graphopt::attention
