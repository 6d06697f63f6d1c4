// How many columns of a row of codes a lane of the fast kernels takes at a time, of VQ<v, b, r>.
#pragma once

namespace graphopt::vq {

/// Bits of so many columns.
constexpr int bits_of_columns(int columns, int v, int b, int r) { return columns / v * r * b; }

/// The fewest columns that fill vectors of 16 bytes, or words where that takes more than 128 columns.
constexpr int lane_columns(int v, int b, int r) {
  for (int columns = 32; columns <= 128; columns *= 2) {
    if (bits_of_columns(columns, v, b, r) % 128 == 0) return columns;
  }
  int columns = 32;
  while (bits_of_columns(columns, v, b, r) % 32 != 0) columns *= 2;
  return columns;
}

}  // namespace graphopt::vq
