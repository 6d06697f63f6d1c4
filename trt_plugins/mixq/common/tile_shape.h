// Tiles of the mma.sync linears. Host and device.
#pragma once

#include <cstdint>

namespace graphopt::mixq {

/// A block's share of Y [M, N] and how its warps split it.
///   kRowsM, kRowsN: rows of X and of W in a block; kWarpM, kWarpN: in a warp.
///   kStages: tiles of 64 columns of K in flight.
template <int kRowsM_, int kRowsN_, int kWarpM_, int kWarpN_, int kStages_>
struct TileShape {
  static constexpr int kRowsM = kRowsM_;
  static constexpr int kRowsN = kRowsN_;
  static constexpr int kWarpM = kWarpM_;
  static constexpr int kWarpN = kWarpN_;
  static constexpr int kStages = kStages_;

  static constexpr int64_t blocks(int64_t m, int64_t n) {
    return ((m + kRowsM - 1) / kRowsM) * ((n + kRowsN - 1) / kRowsN);
  }
};

}  // namespace graphopt::mixq
