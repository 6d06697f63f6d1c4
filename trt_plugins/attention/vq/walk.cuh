// What the kernels over 8-bit codes share: the walk over a block's stretch, and bringing codes in.
#pragma once

#include <cstdint>

#include "attention/args.cuh"
#include "attention/merge.cuh"
#include "attention/stamps.cuh"
#include "attention/work.cuh"
#include "common/ptx.cuh"

namespace graphopt::attention {

/// Run a kernel over the block's stretch of `list`: tables, then tiles, segment by segment.
template <class List, class Kernel>
__device__ __forceinline__ void walk_codes(List const& list, Kernel& kernel) {
  if (static_cast<int32_t>(blockIdx.x) >= list.blocks()) return;
  Stamps& stamps = kernel.stamps();
  Stretch stretch(list);
  stamps.pass(Phase::kTiles);
  int32_t table_head = -1;
  stretch.walk(list, list.at(stretch.position()), [&](Cursor const& at, int32_t tiles, Parts const& parts) {
    kernel.begin_segment(at);
    __syncthreads();  // nobody reads the tables any more
    if (table_head != kernel.head()) kernel.fill_values();
    table_head = kernel.head();
    stamps.pass(Phase::kValues);
    wait_for_predecessor();  // the queries, the new codes and the counters are written
    stamps.pass(Phase::kPredecessor);
    kernel.fetch_keys(at.tile);
    kernel.fetch_values(at.tile);
    kernel.fill_scores();
    __syncthreads();
    stamps.pass(Phase::kTables);
    for (int32_t tile = at.tile; tile < at.tile + tiles; ++tile) {
      kernel.attend(tile, tile + 1 < at.tile + tiles ? tile + 1 : -1);
      if (tile == at.tile) stamps.pass(Phase::kFirstTile);
    }
    stamps.pass(Phase::kTilesDone);
    kernel.end_segment(at, parts);
  });
  stamps.pass(Phase::kEnd);
}

/// Start copying kTokens rows of kGroups codes of a key/value head, from row `token` on, to a warp's shared memory; where
/// there is no next tile, an empty group. Codes of rows from `length` on become 0.
///   displaced: (row) what a row's bytes are displaced by, so that rows that are read together lie in different banks.
template <int kGroups, int kTokens, class T, class Displaced>
__device__ __forceinline__ void fetch_codes(AttentionArgs<T> const& args, SegmentRows const& rows, void const* cache,
                                            char* target, bool any, int32_t token, int32_t length,
                                            Displaced const& displaced) {
  if (any) {
    int32_t const lane = static_cast<int32_t>(threadIdx.x) % 32;
    int64_t const place = (int64_t{rows.b} * args.kv_heads + rows.h) * args.capacity + token;
    char const* source = static_cast<char const*>(cache) + place * kGroups;
    constexpr int kChunks = kGroups / 16;
#pragma unroll
    for (int i = 0; i < kTokens * kChunks / 32; ++i) {
      int const row = (i * 32 + lane) / kChunks, chunk = lane % kChunks;
      bool const valid = token + row < length;
      cp_async_16(shared_address(target + row * kGroups + ((chunk * 16) ^ displaced(row))),
                  source + (valid ? row * kGroups + chunk * 16 : 0), valid);
    }
  }
  cp_async_commit();
}

}  // namespace graphopt::attention
