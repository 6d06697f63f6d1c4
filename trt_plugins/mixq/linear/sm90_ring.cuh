// The ring of stages of the Hopper linear kernel: one thread fills it through the copy engine, warpgroups multiply
// what is in it. A stage holds 128 bytes of K, be it 128 int8 codes or 64 outlier channels, of rows of X and of W.
#pragma once

#include <cstdint>

#include "common/hopper.cuh"
#include "common/wgmma.cuh"
#include "mixq/linear/sm90_tile.h"

namespace graphopt::mixq {

/// Position in the ring: the parity is that of the phase being filled or read.
template <int kStages>
struct RingPosition {
  int stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

/// A block's ring: kStages stages from `base`, a multiple of 1024, and their barriers from `barriers`.
template <int kStages, int kXBytes, int kWBytes>
struct Ring {
  using Position = RingPosition<kStages>;

  uint32_t base;
  uint32_t barriers;

  __device__ __forceinline__ uint32_t x(int stage) const { return base + stage * (kXBytes + kWBytes); }
  __device__ __forceinline__ uint32_t w(int stage) const { return x(stage) + kXBytes; }
  __device__ __forceinline__ uint32_t full(int stage) const { return barriers + 8 * stage; }
  __device__ __forceinline__ uint32_t empty(int stage) const { return full(kStages + stage); }

  /// One thread, before any other use. `readers`: warps that release a stage.
  __device__ __forceinline__ void init(int readers) const {
    for (int stage = 0; stage < kStages; ++stage) {
      mbarrier_init(full(stage), 1);
      mbarrier_init(empty(stage), readers);
    }
  }

  /// Wait until the stage may be filled, and announce `bytes`.
  __device__ __forceinline__ void acquire(Position const& at, uint32_t bytes) const {
    mbarrier_wait(empty(at.stage), at.parity ^ 1);
    mbarrier_arrive_expect(full(at.stage), bytes);
  }
};

/// The stages of one tile of Y: first those of codes, then those of outliers. T is the outliers' type.
template <class T>
struct StageOrder {
  int32_t code_tiles;     // along K
  int32_t outlier_tiles;  // along C

  __device__ __forceinline__ int tiles() const { return code_tiles + outlier_tiles; }
  __device__ __forceinline__ bool is_codes(int tile) const { return tile < code_tiles; }

  /// The first column of `tile` in its matrix.
  __device__ __forceinline__ int column(int tile) const {
    return is_codes(tile) ? tile * kStageRowBytes : (tile - code_tiles) * (kStageRowBytes / int{sizeof(T)});
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

}  // namespace graphopt::mixq
