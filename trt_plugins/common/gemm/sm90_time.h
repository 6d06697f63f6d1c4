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

/// Microseconds of a product, and of the whole device that it leaves to others meanwhile.
struct TileTime {
  double taken, idle;
};

/// Estimated for Y [M, N] and `stages` of K, without the launch.
constexpr TileTime time_tiles(TileCost const& cost, int64_t m, int64_t n, int64_t stages, int multiprocessors) {
  int64_t const down = tiles_along(m, cost.rows_m);
  int64_t const tiles = down * tiles_along(n, cost.rows_n);
  int64_t const at_once = int64_t{multiprocessors} * cost.per_multiprocessor / 2;
  auto const wave = [&](int64_t count) {
    double const bytes = static_cast<double>(count) / static_cast<double>(down) * cost.rows_n * 128;
    return static_cast<double>(stages) * std::max(cost.per_stage, bytes / kBytesPerMicrosecond) + cost.per_tile;
  };
  int64_t const rest = tiles % at_once;
  double const last = rest > 0 ? wave(rest) : 0.0;
  return {static_cast<double>(tiles / at_once) * wave(at_once) + last,
          last * (1.0 - static_cast<double>(rest) / static_cast<double>(at_once))};
}

constexpr double tile_time(TileCost const& cost, int64_t m, int64_t n, int64_t stages, int multiprocessors) {
  return time_tiles(cost, m, n, stages, multiprocessors).taken;
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

/// Estimated microseconds of products by slabs of `slab_rows` rows of W, each of which is written before its product; if
/// two of them take turns, also on multiprocessors that the product by the one before leaves idle.
///   turns: 1 or 2.
///   written(rows): microseconds that writing a slab takes with all multiprocessors.
template <class Written>
constexpr double slabs_time(int64_t m, int64_t n, int64_t k, int size, int64_t slab_rows, int turns,
                            int multiprocessors, Written written) {
  auto const& costs = size == 1 ? kInt8Costs : kHalfCosts;
  auto const product = [&](int64_t rows) {
    TileCost const& tile = costs[gemm_small_tile(m, rows, k, size, multiprocessors) ? 0 : 1];
    return time_tiles(tile, m, rows, gemm_stages(k, size), multiprocessors);
  };
  int64_t const whole = n / slab_rows, rest = n % slab_rows;
  if (whole == 0) return written(rest) + kGemmLaunchTime + product(rest).taken;
  TileTime const each = product(slab_rows);
  auto const left = [&](int64_t rows) { return std::max(0.0, written(rows) - (turns > 1 ? each.idle : 0.0)); };
  double const first = written(slab_rows) + kGemmLaunchTime + each.taken;
  double const others = static_cast<double>(whole - 1) * (left(slab_rows) + kGemmLaunchTime + each.taken);
  return first + others + (rest > 0 ? left(rest) + kGemmLaunchTime + product(rest).taken : 0.0);
}

}  // namespace graphopt
