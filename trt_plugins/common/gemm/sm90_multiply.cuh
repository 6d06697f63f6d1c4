// The stages of a tile of the Hopper matrix product, and the products of one: 128 bytes of K, be it 128 int8 or 64
// numbers of 16 bits, of the operands or of outlier channels.
#pragma once

#include <cstdint>

#include "common/sm90_ring.cuh"
#include "common/wgmma.cuh"
#include "common/gemm/sm90_tile.h"

namespace graphopt {

/// The stages of one tile of Y: first those of the operands, of type X, then those of outliers, of T.
template <class X, class T>
struct StageOrder {
  int32_t main_tiles;     // along K
  int32_t outlier_tiles;  // along C

  __device__ __forceinline__ int tiles() const { return main_tiles + outlier_tiles; }
  __device__ __forceinline__ bool is_main(int tile) const { return tile < main_tiles; }

  /// The first column of `tile` in its matrix.
  __device__ __forceinline__ int column(int tile) const {
    return is_main(tile) ? tile * (kStageRowBytes / int{sizeof(X)})
                         : (tile - main_tiles) * (kStageRowBytes / int{sizeof(T)});
  }
};

/// Add the products of `tiles` >= 1 stages to `sum`, blocks of 64 rows of A. One group of products stays in flight
/// while the next is issued.
///
/// Args:
///   operands: a(stage), b(stage): addresses of A and B; release(stage): called by all lanes when it has been read.
///   step(d, a, b): issues one product.
template <int kBlocks, int kSums, class Ring, class Operands, class Step>
__device__ __forceinline__ void multiply(uint32_t (&sum)[kBlocks][kSums], Ring const& ring,
                                         typename Ring::Position& at, int tiles, Operands const& operands, Step step) {
  int previous = 0;
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) wgmma_pin(sum[block]);
#pragma unroll 1
  for (int i = 0; i < tiles; ++i) {
    mbarrier_wait(ring.full(at.stage), at.parity);
    uint64_t const a = wgmma_descriptor(operands.a(at.stage));
    uint64_t const b = wgmma_descriptor(operands.b(at.stage));
    wgmma_fence();
#pragma unroll
    for (int s = 0; s < kSwizzleBytes / kWgmmaStepBytes; ++s) {
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        uint64_t const along = s * kWgmmaStepBytes / 16;
        step(sum[block], a + block * (kWgmmaRows * kSwizzleBytes / 16) + along, b + along, i + s == 0);
      }
    }
    wgmma_commit();
    wgmma_wait<1>();
    if (i > 0) operands.release(previous);
    previous = at.stage;
    at.advance();
  }
  wgmma_wait<0>();
  operands.release(previous);
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) wgmma_pin(sum[block]);
}

}  // namespace graphopt
