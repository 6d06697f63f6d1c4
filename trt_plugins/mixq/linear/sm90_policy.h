// Which Hopper linear kernel runs. Host code only.
//
// A tile's blocks run in waves, as many as the device has multiprocessors, and each wave costs the time of one tile. The
// times are those of an H100 SXM at the clock that it keeps under int8 load (benchmarks/results/h100/mixq_linear.json;
// tests compare the choice with what was fastest there). Only their ratios matter for the choice.
#pragma once

#include <cstdint>

namespace graphopt::mixq {

/// kTile<rows of X>x<rows of W>[x<blocks of a cluster>]: persistent tiles. kFew<tokens>: for M that small.
enum class Sm90Kernel { kTile128x256x2, kTile128x128, kTile128x64, kFew16, kFew32, kFew64 };

struct Sm90Choice {
  Sm90Kernel kernel;
  int split = 1;         // blocks that share K, 1 to 8, a power of two; kFew only
  bool overlap = false;  // start before the previous grid of the stream has ended; kFew only
};

/// What a tile costs: for 128 bytes of K, and to scale, add outliers and store; microseconds.
struct Sm90TileCost {
  Sm90Kernel kernel;
  int rows_m;
  int rows_n;
  int cluster;
  double per_stage;
  double per_tile;
};

constexpr Sm90TileCost kSm90Tiles[] = {
    {Sm90Kernel::kTile128x256x2, 128, 256, 2, 0.620, 2.8},
    {Sm90Kernel::kTile128x128, 128, 128, 1, 0.400, 0.0},
    {Sm90Kernel::kTile128x64, 128, 64, 1, 0.305, 0.0},
};

constexpr int64_t sm90_blocks(int64_t size, int64_t per_block) { return (size + per_block - 1) / per_block; }

/// Whether the smallest tiles of Y [M, N] can be counted in int32.
constexpr bool sm90_blocks_fit(int64_t m, int64_t n) {
  return sm90_blocks(m, 128) * sm90_blocks(n, 64) <= (int64_t{1} << 30);
}

/// Estimated microseconds of a tile for Y [M, N] and K, without the launch.
constexpr double sm90_tile_time(Sm90TileCost const& tile, int64_t m, int64_t n, int64_t k, int64_t capacity,
                                int multiprocessors) {
  int64_t const clusters = sm90_blocks(m, int64_t{tile.rows_m} * tile.cluster) * sm90_blocks(n, tile.rows_n);
  int64_t const at_once = multiprocessors / tile.cluster;
  int64_t const stages = sm90_blocks(k, 128) + sm90_blocks(capacity, 64);
  return static_cast<double>(sm90_blocks(clusters, at_once)) *
         (static_cast<double>(stages) * tile.per_stage + tile.per_tile);
}

/// The tile that is estimated to be fastest.
///
/// Args:
///   m, n, k, capacity: sizes, see LinearParams.
///   multiprocessors: of the device, 2 or more.
constexpr Sm90Choice pick_sm90(int64_t m, int64_t n, int64_t k, int64_t capacity, int multiprocessors) {
  Sm90TileCost const* best = &kSm90Tiles[0];
  for (Sm90TileCost const& tile : kSm90Tiles) {
    if (sm90_tile_time(tile, m, n, k, capacity, multiprocessors) <
        sm90_tile_time(*best, m, n, k, capacity, multiprocessors)) {
      best = &tile;
    }
  }
  return {best->kernel};
}

}  // namespace graphopt::mixq
