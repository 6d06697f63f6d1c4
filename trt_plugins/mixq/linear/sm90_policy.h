// Which Hopper linear kernel runs. Host code only.
//
// benchmarks/results/h100/mixq_linear*.json have the measurements that the numbers come from, and a test compares the
// choice with the fastest kernel in them.
#pragma once

#include <cstdint>

#include "common/gemm/sm90_time.h"

namespace graphopt::mixq {

/// kTile<rows of X>x<rows of W>[x<blocks of a cluster>]: persistent tiles of wgmma. kSmallM: kernel_small.cuh.
enum class Sm90Kernel { kSmallM, kTile128x64, kTile128x128, kTile128x256x2 };

struct Sm90Cost {
  Sm90Kernel kernel;
  int64_t least_m, most_m;  // where it is considered: what it can do, and has been timed near
  TileCost tile;
};

constexpr int64_t kSm90NoLimit = int64_t{1} << 62;

constexpr Sm90Cost kSm90Costs[] = {
    {Sm90Kernel::kSmallM, 1, 16, {16, 8, 8, 0.20, 0.0}},
    {Sm90Kernel::kTile128x64, 1, kSm90NoLimit, {128, 64, 2, 0.22, 0.8}},
    {Sm90Kernel::kTile128x128, 1, kSm90NoLimit, kInt8Costs[0]},
    {Sm90Kernel::kTile128x256x2, 65, kSm90NoLimit, kInt8Costs[1]},
};

/// Whether the smallest wgmma tiles of Y [M, N] can be counted in int32.
constexpr bool sm90_blocks_fit(int64_t m, int64_t n) {
  return tiles_along(m, 128) * tiles_along(n, 64) <= (int64_t{1} << 30);
}

/// Estimated microseconds for Y [M, N] and K, without the launch. See pick_sm90.
constexpr double sm90_time(Sm90Cost const& cost, int64_t m, int64_t n, int64_t k, int64_t capacity,
                           int multiprocessors) {
  return tile_time(cost.tile, m, n, tiles_along(k, 128) + tiles_along(capacity, 64), multiprocessors);
}

/// The kernel that is estimated to be fastest.
///
/// Args:
///   m, n, k, capacity: sizes, see LinearParams.
///   multiprocessors: of the device, 2 or more.
constexpr Sm90Kernel pick_sm90(int64_t m, int64_t n, int64_t k, int64_t capacity, int multiprocessors) {
  Sm90Cost const* best = nullptr;
  for (Sm90Cost const& cost : kSm90Costs) {
    if (m < cost.least_m || m > cost.most_m) continue;
    if (best == nullptr ||
        sm90_time(cost, m, n, k, capacity, multiprocessors) < sm90_time(*best, m, n, k, capacity, multiprocessors)) {
      best = &cost;
    }
  }
  return best->kernel;
}

}  // namespace graphopt::mixq
