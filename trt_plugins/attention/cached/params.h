// Attention over a key-value cache of fixed capacity: rotary, append and softmax(q k^T) v in one op.
//
//   q', k' = rotary(q), rotary(k)                            (Su et al., 2021, eq. 34; halves, not neighbours)
//   present[b, h, start[b] + i] = k'[b, i, h], v[b, i, h]    every other row as in past
//   y[b, i] = softmax over j <= start[b] + i of scale * q'[b, i] . present_k[b, h, j], times present_v
//
// Sums and the softmax are float32; q', k' and y are rounded to T once.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "common/tensor.h"

namespace graphopt::attention {

/// Query head h reads key/value head h / (heads / kv_heads). y must not overlap an input; each present is its past, or
/// overlaps nothing. Where they are the same, only the new rows are written.
struct CachedParams {
  DType dtype;           // T: kFloat32, kFloat16 or kBFloat16
  int64_t batch;         // B, sequences; 0 does nothing
  int64_t seq;           // S, new tokens of each sequence; 0 only copies past to present
  int64_t heads;         // Hq, a multiple of Hkv
  int64_t kv_heads;      // Hkv >= 1
  int64_t head_size;     // D >= 1; even if rotary
  int64_t capacity;      // C >= 1, rows of the cache
  int64_t tables;        // Bc: 1 where all sequences share cos and sin, else B
  bool rotary;           // whether q and k are rotated; if not, cos and sin are not read
  float scale;           // factor on q' . k'
  void const* q;         // [B, S, Hq, D] T
  void const* k;         // [B, S, Hkv, D] T
  void const* v;         // [B, S, Hkv, D] T
  void const* cos;       // [Bc, S, D] T
  void const* sin;       // [Bc, S, D] T
  void const* past_k;    // [B, Hkv, C, D] T
  void const* past_v;    // [B, Hkv, C, D] T
  int32_t const* start;  // [B]: rows that sequence b has already, on the device; below 0 counts as 0. New rows from C on
                         // are dropped, and queries there see all C rows
  void* y;               // [B, S, Hq, D] T
  void* present_k;       // [B, Hkv, C, D] T
  void* present_v;       // [B, Hkv, C, D] T
  void* workspace;       // cached_workspace_bytes of these sizes, or of larger ones; aligned to 16 bytes
};

/// Whether a cache holds keys and values of T, or codes, which some kernels expand to T first.
enum class CacheKind { kPlain, kCodes };

/// Scratch bytes for problems of at most these sizes; pointers are not looked at.
size_t cached_workspace_bytes(CachedParams const& params, CacheKind kind);

Status launch_cached(CachedParams const& params, cudaStream_t stream);

}  // namespace graphopt::attention
