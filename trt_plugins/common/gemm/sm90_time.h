// How long the tiles of the Hopper matrix product take. Host code only.
//
// Tiles of Y run in waves, as many as the device holds at once. A wave takes as long as one of its tiles, or as the
// rows of W that it brings from memory, whichever is longer. The numbers describe an H100 SXM at the clock that it
// keeps under load.
#pragma once

#include <algorithm>
#include <cstdint>

namespace graphopt {

constexpr double kBytesPerMicrosecond = 3.0e6;

/// What a tile costs, that of a whole cluster where there is one.
struct TileCost {
  int rows_m, rows_n;      // of X and of W
  int per_multiprocessor;  // at once, times 2
  double per_stage;        // microseconds for 128 bytes of K
  double per_tile;         // microseconds for what follows the products
};

/// Tiles of int8: 128x128, 128x256 in clusters of two.
constexpr TileCost kInt8Costs[] = {{128, 128, 2, 0.37, 0.0}, {256, 256, 1, 0.63, 2.8}};
/// The same of 16 bits, which keep a lower clock.
constexpr TileCost kHalfCosts[] = {{128, 128, 2, 0.40, 0.0}, {256, 256, 1, 0.76, 2.8}};

constexpr int64_t tiles_along(int64_t size, int64_t per_tile) { return (size + per_tile - 1) / per_tile; }

/// Estimated microseconds for Y [M, N] and `stages` of K, without the launch.
constexpr double tile_time(TileCost const& cost, int64_t m, int64_t n, int64_t stages, int multiprocessors) {
  int64_t const down = tiles_along(m, cost.rows_m);
  int64_t const tiles = down * tiles_along(n, cost.rows_n);
  int64_t const at_once = int64_t{multiprocessors} * cost.per_multiprocessor / 2;
  auto const wave = [&](int64_t count) {
    double const bytes = static_cast<double>(count) / static_cast<double>(down) * cost.rows_n * 128;
    return static_cast<double>(stages) * std::max(cost.per_stage, bytes / kBytesPerMicrosecond) + cost.per_tile;
  };
  int64_t const rest = tiles % at_once;
  return static_cast<double>(tiles / at_once) * wave(at_once) + (rest > 0 ? wave(rest) : 0.0);
}

constexpr double kGemmLaunchTime = 3.0;  // microseconds, between kernels that start early

/// Stages of 128 bytes of K, for operands of `size` bytes, 1 or 2.
constexpr int64_t gemm_stages(int64_t k, int size) { return tiles_along(k * size, 128); }

/// Whether the smaller tile, 128x128, is estimated to be faster than 128x256 in clusters of two.
constexpr bool gemm_small_tile(int64_t m, int64_t n, int64_t k, int size, int multiprocessors) {
  auto const& costs = size == 1 ? kInt8Costs : kHalfCosts;
  int64_t const stages = gemm_stages(k, size);
  return tile_time(costs[0], m, n, stages, multiprocessors) < tile_time(costs[1], m, n, stages, multiprocessors);
}

/// Estimated microseconds of the product with its launch.
constexpr double gemm_time(int64_t m, int64_t n, int64_t k, int size, int multiprocessors) {
  auto const& costs = size == 1 ? kInt8Costs : kHalfCosts;
  TileCost const& tile = costs[gemm_small_tile(m, n, k, size, multiprocessors) ? 0 : 1];
  return kGemmLaunchTime + tile_time(tile, m, n, gemm_stages(k, size), multiprocessors);
}

}  // namespace graphopt
