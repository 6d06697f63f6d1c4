// How the Hopper linear kernels store Y: through shared memory and the copy engine, a part at a time from two buffers in
// turns.
#pragma once

#include "common/hopper.cuh"
#include "common/wgmma.cuh"

namespace graphopt {

/// Wait until what was stored from the next buffer has left it.
///   warpgroup: of the consumers; `leader` is the one of its threads that stores.
__device__ __forceinline__ void acquire_buffer(int warpgroup, bool leader) {
  if (leader) bulk_wait_read<1>();
  warpgroup_sync(1 + warpgroup);
}

/// Store what the warpgroup has written to the buffer at `place` to Y from `column` and `row` on.
__device__ __forceinline__ void store_buffer(CUtensorMap const& y, int warpgroup, bool leader, uint32_t place,
                                             int column, int row) {
  async_proxy_fence();
  warpgroup_sync(1 + warpgroup);
  if (leader) {
    tma_store(&y, place, column, row);
    bulk_commit();
  }
}

/// Store kTokens tokens from `token` on of 64 rows of W, kStoreTokens at a time, of kernels that compute Y^T.
///   m: tokens of Y; those beyond are not stored.
///   buffer: turn of the buffers, kept from tile to tile; buffer_at(turn) is its place in shared memory.
///   fill(c, first, place): writes the tokens of part c, from `first` on, as the copy engine expects them.
template <int kTokens, int kStoreTokens, class BufferAt, class Fill>
__device__ __forceinline__ void store_tokens(CUtensorMap const& y, int m, int warpgroup, bool leader, int& buffer,
                                             int token, int row, BufferAt buffer_at, Fill fill) {
#pragma unroll
  for (int c = 0; c < kTokens / kStoreTokens; ++c) {
    int const first = token + c * kStoreTokens;
    if (first >= m) break;
    acquire_buffer(warpgroup, leader);
    uint32_t const place = buffer_at(buffer);
    fill(c, first, place);
    store_buffer(y, warpgroup, leader, place, row, first);
    buffer ^= 1;
  }
}

}  // namespace graphopt
