// Rotates queries into the workspace and keys into the cache, and writes values into the cache: the launch before the one
// that reads the cache.
#pragma once

#include <cstdint>

#include "attention/args.cuh"
#include "common/ptx.cuh"
#include "common/vec.cuh"

namespace graphopt::attention {

template <class T>
struct AppendArgs {
  int32_t seq;        // S
  int32_t kv_heads;   // Hkv
  int32_t heads;      // Hq
  int32_t head_size;  // D
  int32_t capacity;   // C
  int32_t tables;     // Bc
  bool rotary;
  int64_t query_rows;  // B S Hq where rotated queries are wanted, else 0
  int64_t cache_rows;  // B S Hkv where k and v are stored as they are, else 0
  int32_t counters;    // to be set to 0
  T const* __restrict__ q;
  T const* __restrict__ k;
  T const* __restrict__ v;
  T const* __restrict__ cos;
  T const* __restrict__ sin;
  int32_t const* __restrict__ start;
  T* __restrict__ rotated;  // [B, S, Hq, D]
  T* __restrict__ present_k;
  T* __restrict__ present_v;
  int32_t* __restrict__ counter;
};

/// An element of a rotated row: x cos + turned sin, turned an element of rotate_half(x). Every operation is rounded, as in
/// the definition: codes of keys could differ otherwise.
__device__ __forceinline__ float rotated_value(float x, float turned, float cos, float sin) {
  return __fadd_rn(__fmul_rn(x, cos), __fmul_rn(turned, sin));
}

/// kSize elements at column `column` of x [D], rotated by the tables of the row's position:
/// x cos + rotate_half(x) sin, rotate_half(x) = (-x[D/2:], x[:D/2]). All kSize lie in the same half.
template <class T, int kSize>
__device__ __forceinline__ void rotate(T const* x, T const* cos, T const* sin, int32_t column, int32_t head_size,
                                       float (&out)[kSize]) {
  int32_t const half = head_size / 2;
  bool const low = column < half;
  T const* partner = x + (low ? column + half : column - half);
  if constexpr (kSize == 1) {
    float const turned = to_float(*partner);
    out[0] = rotated_value(to_float(x[column]), low ? -turned : turned, to_float(cos[column]), to_float(sin[column]));
  } else {
    Vec<T> const own = load_cached(x + column), other = load_cached(partner), c = load_cached(cos + column),
                 s = load_cached(sin + column);
#pragma unroll
    for (int e = 0; e < kSize; ++e) {
      out[e] = rotated_value(own.get(e), low ? -other.get(e) : other.get(e), c.get(e), s.get(e));
    }
  }
}

/// Element `column` of row `row` of keys or queries x [B, S, heads, D], rotated if wanted and rounded to T.
template <class T>
__device__ __forceinline__ T rotated_element(AppendArgs<T> const& args, T const* x, int64_t row, int32_t heads,
                                             int32_t column) {
  T const* const source = x + row * args.head_size;
  if (!args.rotary) return source[column];
  int64_t const token = row / heads;
  int64_t const table = (args.tables == 1 ? token % args.seq : token) * args.head_size;
  float out[1];
  rotate<T, 1>(source, args.cos + table, args.sin + table, column, args.head_size, out);
  return from_float<T>(out[0]);
}

/// See append_elements. Row numbers are divided as Index: three divisions of 64 bits cost more than all else.
template <class T, int kSize, class Index>
__device__ __forceinline__ void append_at(AppendArgs<T> const& args, Index thread) {
  if (thread < static_cast<Index>(args.counters)) args.counter[thread] = 0;
  Index const per_row = static_cast<Index>(args.head_size / kSize);
  int64_t row = thread / per_row;
  int32_t const column = static_cast<int32_t>(thread % per_row) * kSize;
  if (row >= args.query_rows + 2 * args.cache_rows) return;

  bool const query = row < args.query_rows;
  row -= query ? 0 : args.query_rows;
  bool const value = !query && row >= args.cache_rows;
  row -= value ? args.cache_rows : 0;
  Index const heads = static_cast<Index>(query ? args.heads : args.kv_heads), seq = static_cast<Index>(args.seq);
  Index const token = static_cast<Index>(row) / heads, head = static_cast<Index>(row) % heads;
  int32_t const b = static_cast<int32_t>(token / seq), i = static_cast<int32_t>(token % seq);

  T const* source = (query ? args.q : value ? args.v : args.k) + row * args.head_size;
  T* target = args.rotated + row * args.head_size;
  if (!query) {
    int32_t const position = past_rows(args.start, b, args.capacity) + i;
    if (position >= args.capacity) return;
    int64_t const place = (int64_t{b} * args.kv_heads + static_cast<int32_t>(head)) * args.capacity + position;
    target = (value ? args.present_v : args.present_k) + place * args.head_size;
  }
  if (value || !args.rotary) {
    if constexpr (kSize == 1) {
      target[column] = source[column];
    } else {
      store(target + column, load_cached(source + column));
    }
    return;
  }
  int64_t const table = (args.tables == 1 ? int64_t{i} : static_cast<int64_t>(token)) * args.head_size;
  float out[kSize];
  rotate<T, kSize>(source, args.cos + table, args.sin + table, column, args.head_size, out);
  if constexpr (kSize == 1) {
    target[column] = from_float<T>(out[0]);
  } else {
    Vec<T> rounded;
    rounded.set(out);
    store(target + column, rounded);
  }
}

/// Work of one of the threads: kSize neighbouring elements of a row; rows are those of q, then k, then v. kSize is 1, or a
/// vector where D is a multiple of two vectors (one without rotary) and everything is aligned.
template <class T, int kSize>
__device__ __forceinline__ void append_elements(AppendArgs<T> const& args, int64_t thread) {
  if (thread <= UINT32_MAX) {
    append_at<T, kSize>(args, static_cast<uint32_t>(thread));
  } else {
    append_at<T, kSize>(args, static_cast<uint64_t>(thread));
  }
}

template <class T, int kSize>
__global__ void __launch_bounds__(256) attention_append(AppendArgs<T> const args) {
  wait_for_predecessor();
  release_successor();
  append_elements<T, kSize>(args, int64_t{blockIdx.x} * blockDim.x + threadIdx.x);
}

}  // namespace graphopt::attention
