// The ring of stages of the Hopper linear kernels: one thread fills it through the copy engine, warpgroups multiply
// what is in it. A stage holds as much of K, be it codes or outlier channels, of rows of X and of W.
#pragma once

#include <cstdint>

#include "common/hopper.cuh"

namespace graphopt {

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

}  // namespace graphopt
