// Which Hopper linear kernel runs. Host code only.
//
// Tiles of Y run in waves, as many as the device holds at once. A wave takes as long as one of its tiles, or as the
// rows of W that it brings from memory, whichever is longer. The numbers describe an H100 SXM at the clock that it
// keeps under int8 load; benchmarks/results/h100/mixq_linear*.json have the measurements, and a test compares the choice
// with the fastest kernel in them.
#pragma once

#include <algorithm>
#include <cstdint>

namespace graphopt::mixq {

/// kTile<rows of X>x<rows of W>[x<blocks of a cluster>]: persistent tiles of wgmma. kSmallM: kernel_small.cuh.
enum class Sm90Kernel { kSmallM, kTile128x64, kTile128x128, kTile128x256x2 };

/// What a tile costs, that of a whole cluster where there is one.
struct Sm90Cost {
  Sm90Kernel kernel;
  int64_t least_m, most_m;  // where it is considered: what it can do, and has been timed near
  int rows_m, rows_n;       // of X and of W
  int per_multiprocessor;   // at once, times 2
  double per_stage;         // microseconds for 128 bytes of K
  double per_tile;          // microseconds to scale, add outliers and store
};

constexpr int64_t kSm90NoLimit = int64_t{1} << 62;
constexpr double kSm90BytesPerMicrosecond = 3.0e6;

constexpr Sm90Cost kSm90Costs[] = {
    {Sm90Kernel::kSmallM, 1, 16, 16, 8, 8, 0.20, 0.0},
    {Sm90Kernel::kTile128x64, 1, kSm90NoLimit, 128, 64, 2, 0.22, 0.8},
    {Sm90Kernel::kTile128x128, 1, kSm90NoLimit, 128, 128, 2, 0.37, 0.0},
    {Sm90Kernel::kTile128x256x2, 65, kSm90NoLimit, 256, 256, 1, 0.63, 2.8},
};

constexpr int64_t sm90_blocks(int64_t size, int64_t per_block) { return (size + per_block - 1) / per_block; }

/// Whether the smallest wgmma tiles of Y [M, N] can be counted in int32.
constexpr bool sm90_blocks_fit(int64_t m, int64_t n) {
  return sm90_blocks(m, 128) * sm90_blocks(n, 64) <= (int64_t{1} << 30);
}

/// Estimated microseconds for Y [M, N] and K, without the launch. See pick_sm90.
constexpr double sm90_time(Sm90Cost const& cost, int64_t m, int64_t n, int64_t k, int64_t capacity,
                           int multiprocessors) {
  int64_t const down = sm90_blocks(m, cost.rows_m);
  int64_t const tiles = down * sm90_blocks(n, cost.rows_n);
  int64_t const at_once = int64_t{multiprocessors} * cost.per_multiprocessor / 2;
  auto const stages = static_cast<double>(sm90_blocks(k, 128) + sm90_blocks(capacity, 64));
  auto const wave = [&](int64_t count) {
    double const bytes = static_cast<double>(count) / static_cast<double>(down) * cost.rows_n * 128;
    return stages * std::max(cost.per_stage, bytes / kSm90BytesPerMicrosecond) + cost.per_tile;
  };
  int64_t const rest = tiles % at_once;
  return static_cast<double>(tiles / at_once) * wave(at_once) + (rest > 0 ? wave(rest) : 0.0);
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
