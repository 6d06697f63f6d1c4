// Appends to a cache of codes: rotates keys, and replaces vectors of keys and values by their nearest centroids.
//
// A warp has a codebook of one head and group of channels in its registers, eight centroids a lane, and passes all new
// tokens by them: codebooks are read once, whatever the number of tokens.
#pragma once

#include <cstdint>

#include "attention/append.cuh"
#include "attention/vq/args.cuh"
#include "common/reduce.cuh"

namespace graphopt::attention {

constexpr int kEncodeWarps = 8;

/// Codes of `append`'s k and v go to codes_k and codes_v [B, Hkv, C, D / kVector].
template <class T>
struct EncodeArgs {
  AppendArgs<T> append;
  bool vectors;    // see append_elements
  int32_t blocks;  // that encode; those after them rotate queries
  int64_t tokens;  // B S
  T const* __restrict__ codebook_k;
  T const* __restrict__ codebook_v;
  uint8_t* __restrict__ codes_k;
  uint8_t* __restrict__ codes_v;
  T* __restrict__ expanded_k;  // [B, Hkv, C, D], or null: what the codes of new tokens stand for goes here, too
  T* __restrict__ expanded_v;
};

/// Squared distance, rounded after every operation, as the definition is: a fused one would decide some ties otherwise.
template <int kVector>
__device__ __forceinline__ float squared_distance(float const (&x)[kVector], float const* centroid) {
  float distance = 0.0f;
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    float const off = __fsub_rn(x[i], centroid[i]);
    distance = __fadd_rn(distance, __fmul_rn(off, off));
  }
  return distance;
}

/// Nearest of a warp's 256 centroids, ties to the lowest code: centroid e of a lane has code 32 e + lane.
template <int kVector>
__device__ __forceinline__ uint32_t nearest(float const (&centroid)[kEntries / 32][kVector],
                                            float const (&x)[kVector]) {
  int const lane = static_cast<int>(threadIdx.x) % 32;
  float best = INFINITY;
  uint32_t code = static_cast<uint32_t>(lane);
#pragma unroll
  for (int e = 0; e < kEntries / 32; ++e) {
    float const distance = squared_distance(x, centroid[e]);
    if (distance < best) best = distance, code = static_cast<uint32_t>(e * 32 + lane);
  }
  uint32_t const bits = __float_as_uint(best);  // ordered like the distance, which has no sign
  uint32_t const least = __reduce_min_sync(0xffffffffu, bits);
  return __reduce_min_sync(0xffffffffu, bits == least ? code : ~0u);
}

/// Elements column.. of the key or value of one new token, keys rotated and rounded to T.
template <class T, int kVector>
__device__ __forceinline__ void load_vector(EncodeArgs<T> const& args, bool value, int64_t token, int32_t h,
                                            int32_t column, float (&x)[kVector]) {
  AppendArgs<T> const& a = args.append;
  T const* row = (value ? a.v : a.k) + (token * a.kv_heads + h) * a.head_size;
  uint32_t const seq = static_cast<uint32_t>(a.seq), number = static_cast<uint32_t>(token);
  int64_t const table = table_offset(a, static_cast<int32_t>(number / seq), static_cast<int32_t>(number % seq));
#pragma unroll
  for (int e = 0; e < kVector; ++e) {
    bool const plain = value || !a.rotary;
    float const out =
        plain ? to_float(row[column + e]) : rotate(row, a.cos + table, a.sin + table, column + e, a.head_size);
    x[e] = to_float(from_float<T>(out));
  }
}

/// Rotates queries into the workspace, and sets the counters to 0.
template <class T>
__device__ __forceinline__ void append_queries(EncodeArgs<T> const& args) {
  wait_for_predecessor();
  release_successor();
  if (blockIdx.y > 0) return;
  int64_t const thread = (int64_t{blockIdx.x} - args.blocks) * blockDim.x + threadIdx.x;
  if (args.vectors) {
    append_elements<T, Vec<T>::kSize>(args.append, thread);
  } else {
    append_elements<T, 1>(args.append, thread);
  }
}

/// Row of the cache, (b Hkv + h) C + position, of key/value head h of new token number `token`; negative where there is
/// no room for it.
template <class T>
__device__ __forceinline__ int64_t cache_row(AppendArgs<T> const& a, uint32_t token, int32_t h) {
  uint32_t const seq = static_cast<uint32_t>(a.seq);
  int32_t const b = static_cast<int32_t>(token / seq), i = static_cast<int32_t>(token % seq);
  int32_t const position = past_rows(a.start, b, a.capacity) + i;
  return position < a.capacity ? (int64_t{b} * a.kv_heads + h) * a.capacity + position : -1;
}

/// Grid: (ceil(2 Hkv D / kVector / kEncodeWarps) and blocks for queries, parts of the tokens).
template <class T, int kVector>
__global__ void __launch_bounds__(32 * kEncodeWarps) attention_encode(EncodeArgs<T> const args) {
  AppendArgs<T> const& a = args.append;
  if (static_cast<int32_t>(blockIdx.x) >= args.blocks) return append_queries(args);
  Stamps stamps = append_stamps(a);
  int32_t const lane = static_cast<int32_t>(threadIdx.x) % 32, groups = a.head_size / kVector;
  int32_t unit = static_cast<int32_t>(blockIdx.x) * kEncodeWarps + static_cast<int32_t>(threadIdx.x) / 32;
  if (unit >= 2 * a.kv_heads * groups) return;
  bool const value = unit >= a.kv_heads * groups;
  unit -= value ? a.kv_heads * groups : 0;
  int32_t const h = unit / groups, group = unit % groups;
  T const* book = (value ? args.codebook_v : args.codebook_k) + int64_t{unit} * kEntries * kVector;
  float centroid[kEntries / 32][kVector];
#pragma unroll
  for (int e = 0; e < kEntries / 32; ++e) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) centroid[e][i] = to_float(book[(e * 32 + lane) * kVector + i]);
  }
  wait_for_predecessor();
  release_successor();
  stamps.pass(Phase::kPredecessor);
  for (int64_t first = int64_t{blockIdx.y} * 32; first < args.tokens; first += int64_t{gridDim.y} * 32) {
    int64_t const own = first + lane;
    float mine[kVector] = {};
    if (own < args.tokens) load_vector<T, kVector>(args, value, own, h, group * kVector, mine);
    int const count = static_cast<int>(min(int64_t{32}, args.tokens - first));
    uint32_t code = 0;
    for (int j = 0; j < count; ++j) {
      float x[kVector];
#pragma unroll
      for (int e = 0; e < kVector; ++e) x[e] = __shfl_sync(0xffffffffu, mine[e], j);
      uint32_t const found = nearest<kVector>(centroid, x);
      if (lane == j) code = found;
    }
    if (own >= args.tokens) continue;
    int64_t const place = cache_row(a, static_cast<uint32_t>(own), h);
    if (place >= 0) (value ? args.codes_v : args.codes_k)[place * groups + group] = static_cast<uint8_t>(code);
  }
  stamps.pass(Phase::kEnd);
}

}  // namespace graphopt::attention
