// Rotates queries into the workspace and keys into the cache, and writes values into the cache: the launch before the
// one that reads the cache.
#pragma once

#include <cstdint>
#include <cstring>

#include "attention/args.cuh"
#include "attention/stamps.cuh"
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

/// Stamps of a block of the launch before the one that reads the cache: parts begin where counters end.
template <class T>
__device__ __forceinline__ Stamps append_stamps(AppendArgs<T> const& args) {
  int32_t const block = blockIdx.y == 0 ? static_cast<int32_t>(blockIdx.x) : Stamps::kRecords;
  return Stamps(reinterpret_cast<float*>(args.counter + args.counters), Stamps::kAppendRecord + block);
}

/// An element of a rotated row: x cos + turned sin, turned an element of rotate_half(x). Every operation is rounded, as
/// in the definition: codes of keys could differ otherwise.
__device__ __forceinline__ float rotated_value(float x, float turned, float cos, float sin) {
  return __fadd_rn(__fmul_rn(x, cos), __fmul_rn(turned, sin));
}

/// Element `column` of x [D], rotated by the tables of the row's position:
/// x cos + rotate_half(x) sin, rotate_half(x) = (-x[D/2:], x[:D/2]).
template <class T>
__device__ __forceinline__ float rotate(T const* x, T const* cos, T const* sin, int32_t column, int32_t head_size) {
  int32_t const half = head_size / 2;
  float const turned = column < half ? -to_float(x[column + half]) : to_float(x[column - half]);
  return rotated_value(to_float(x[column]), turned, to_float(cos[column]), to_float(sin[column]));
}

/// Where the tables of new token i of sequence b begin.
template <class T>
__device__ __forceinline__ int64_t table_offset(AppendArgs<T> const& args, int32_t b, int32_t i) {
  return (args.tables == 1 ? int64_t{i} : int64_t{b} * args.seq + i) * args.head_size;
}

/// Element `column` of x [D], rotated if wanted by the tables at an offset, and rounded to T.
template <class T>
__device__ __forceinline__ T rotated_element(AppendArgs<T> const& args, T const* x, int64_t table, int32_t column) {
  if (!args.rotary) return x[column];
  return from_float<T>(rotate(x, args.cos + table, args.sin + table, column, args.head_size));
}

/// What a thread moves at once: a vector, or one element.
template <class T, int kSize>
struct AppendPiece {
  T raw[kSize];

  __device__ __forceinline__ static AppendPiece load(T const* from) {
    AppendPiece piece;
    if constexpr (kSize == 1) {
      piece.raw[0] = *from;
    } else {
      Vec<T> const vector = load_cached(from);
      memcpy(piece.raw, vector.word, sizeof(piece.raw));
    }
    return piece;
  }

  __device__ __forceinline__ void store(T* to) const {
    if constexpr (kSize == 1) {
      *to = raw[0];
    } else {
      Vec<T> vector;
      memcpy(vector.word, raw, sizeof(raw));
      graphopt::store(to, vector);
    }
  }

  /// x cos + kSign turned sin, rounded.
  template <int kSign>
  __device__ __forceinline__ static AppendPiece rotated(AppendPiece const& x, AppendPiece const& turned,
                                                        AppendPiece const& cos, AppendPiece const& sin) {
    AppendPiece piece;
#pragma unroll
    for (int e = 0; e < kSize; ++e) {
      float const other = kSign < 0 ? -to_float(turned.raw[e]) : to_float(turned.raw[e]);
      piece.raw[e] =
          from_float<T>(rotated_value(to_float(x.raw[e]), other, to_float(cos.raw[e]), to_float(sin.raw[e])));
    }
    return piece;
  }
};

/// Threads to a row of D: each has two pieces, half a row apart; the last one of an odd number has one.
__host__ __device__ constexpr int64_t append_threads(int64_t head_size, int64_t size) {
  return (head_size / size + 1) / 2;
}

/// See append_elements. Row numbers are divided as Index: three divisions of 64 bits cost more than all else.
template <class T, int kSize, class Index>
__device__ __forceinline__ void append_at(AppendArgs<T> const& args, Index thread) {
  using Piece = AppendPiece<T, kSize>;
  if (thread < static_cast<Index>(args.counters)) args.counter[thread] = 0;
  Index const per_row = static_cast<Index>(append_threads(args.head_size, kSize));
  int64_t row = thread / per_row;
  int32_t const column = static_cast<int32_t>(thread % per_row) * kSize;
  int32_t const other = column + static_cast<int32_t>(per_row) * kSize;
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
  Piece const low = Piece::load(source + column);
  if (value || !args.rotary) {
    if (other < args.head_size) Piece::load(source + other).store(target + other);
    low.store(target + column);
    return;
  }
  int64_t const table = table_offset(args, b, i);
  T const *const cos = args.cos + table, *const sin = args.sin + table;
  Piece const high = Piece::load(source + other);
  Piece::template rotated<-1>(low, high, Piece::load(cos + column), Piece::load(sin + column)).store(target + column);
  Piece::template rotated<1>(high, low, Piece::load(cos + other), Piece::load(sin + other)).store(target + other);
}

/// Work of one of the threads: two pieces of kSize neighbouring elements of a row; rows are those of q, then k, then v.
/// kSize is 1, or a vector where D is a multiple of two vectors (one without rotary) and everything is aligned.
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
  Stamps stamps = append_stamps(args);
  wait_for_predecessor();
  release_successor();
  stamps.pass(Phase::kPredecessor);
  append_elements<T, kSize>(args, int64_t{blockIdx.x} * blockDim.x + threadIdx.x);
  stamps.pass(Phase::kEnd);
}

}  // namespace graphopt::attention
