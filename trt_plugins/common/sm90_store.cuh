// How the Hopper linear kernels that compute Y^T store Y: through shared memory and the copy engine.
#pragma once

#include "common/hopper.cuh"
#include "common/wgmma.cuh"

namespace graphopt {

/// Store kTokens tokens from `token` on of 64 rows of W, kStoreTokens at a time, through two buffers in turns.
///   m: tokens of Y; those beyond are not stored.
///   warpgroup: of the consumers; `leader` is one of its threads.
///   buffer: turn of the buffers, kept from tile to tile; buffer_at(turn) is its place in shared memory.
///   fill(c, first, place): writes the tokens of part c, from `first` on, as the copy engine expects them.
template <int kTokens, int kStoreTokens, class BufferAt, class Fill>
__device__ __forceinline__ void store_tokens(CUtensorMap const& y, int m, int warpgroup, bool leader, int& buffer,
                                             int token, int row, BufferAt buffer_at, Fill fill) {
#pragma unroll
  for (int c = 0; c < kTokens / kStoreTokens; ++c) {
    int const first = token + c * kStoreTokens;
    if (first >= m) break;
    if (leader) bulk_wait_read<1>();
    warpgroup_sync(1 + warpgroup);
    uint32_t const place = buffer_at(buffer);
    fill(c, first, place);
    async_proxy_fence();
    warpgroup_sync(1 + warpgroup);
    if (leader) {
      tma_store(&y, place, row, first);
      bulk_commit();
    }
    buffer ^= 1;
  }
}

}  // namespace graphopt
