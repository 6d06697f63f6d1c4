// Attention over a cache of codes, after its keys and values have been written out as T: for many query rows, for which
// that costs little, and for all sizes and types that have no kernel over codes.
#pragma once

#include <algorithm>
#include <cstdint>

#include "attention/cached/launch.cuh"

namespace graphopt::attention {

/// Sequences b.. and key/value heads h.. whose keys and values are written out together.
struct Slice {
  int32_t b, batch;
  int32_t h, kv_heads;
};

/// Args:
///   all: k and v are not read.
///   memory: the workspace.
///   expand: (slice, k, v, stream) enqueues what writes k and v [batch, kv_heads, C, D] of a slice, rows below
///     start[b] + S; others need not be written.
template <class T, class Expand>
Status launch_expanded(AttentionArgs<T> const& all, Workspace const& workspace, void* memory, bool vectors,
                       Expand const& expand, cudaStream_t stream) {
  int64_t const row = int64_t{all.capacity} * all.head_size;  // elements of K of a sequence and head
  int64_t const most = kMaxExpandedBytes / expanded_head_bytes(all.capacity, all.head_size, sizeof(T));
  int32_t const pairs = static_cast<int32_t>(std::min<int64_t>(std::max<int64_t>(most, 1), 1 << 30));
  int32_t const heads = std::min(pairs, all.kv_heads), batch = std::min(pairs / heads, all.batch);
  T* const k = reinterpret_cast<T*>(static_cast<char*>(memory) + workspace.expanded);
  for (int32_t b = 0; b < all.batch; b += batch) {
    for (int32_t h = 0; h < all.kv_heads; h += heads) {
      Slice const slice{b, std::min(batch, all.batch - b), h, std::min(heads, all.kv_heads - h)};
      T* const v = k + row * slice.batch * slice.kv_heads;
      GRAPHOPT_TRY(expand(slice, k, v, stream));
      AttentionArgs<T> args = all;
      int64_t const first = (int64_t{b} * all.seq * all.heads + h * all.group) * all.head_size;
      args.batch = slice.batch;
      args.kv_heads = slice.kv_heads;
      args.q += first;
      args.y += first;
      args.start += b;
      args.k = k;
      args.v = v;
      if (args.tables > 1) {  // where queries are not rotated yet
        args.cos += int64_t{b} * all.seq * all.head_size;
        args.sin += int64_t{b} * all.seq * all.head_size;
      }
      args.counters += kMaxDecodeTiles * (int64_t{b} * all.kv_heads + int64_t{h} * slice.batch);
      GRAPHOPT_TRY(launch_attention<T>(args, vectors, Start::kInOrder, stream));
    }
  }
  return Status::kOk;
}

}  // namespace graphopt::attention
