// Order of tiles of the Hopper M-ANT linears. Host code only.
#pragma once

#include <algorithm>
#include <cmath>

namespace graphopt::mant {

/// Tiles of tokens walked before the next rows of W: those that balance what tiles in flight read of X and of W.
///   x_bytes, w_bytes: of a tile, for each column.
inline int tokens_group(int down, int in_flight, double x_bytes, double w_bytes) {
  return std::clamp(static_cast<int>(std::lround(std::sqrt(in_flight * w_bytes / x_bytes))), 1, down);
}

}  // namespace graphopt::mant
