// The table of the lattice E8, made from its definition (graphopt.passes.vq.e8): the vectors of half-integers 1/2, 3/2,
// 5/2 with squared norm at most 10, and the first of those with 12, in lexicographic order, 256 in all. Coordinate 7 is
// negative where the sum of the absolute values is odd.
#pragma once

#include <cstdint>

namespace graphopt::vq {

constexpr int kE8Rows = 256;

/// Rows as words: bits 2 i and 2 i + 1 hold |coordinate i| - 1/2, bit 16 whether coordinate 7 is negative.
struct E8Table {
  uint32_t row[kE8Rows];
};

constexpr E8Table make_e8_table() {
  constexpr int kVectors = 6561;           // 3^8
  constexpr int kFull = 40, kBorder = 48;  // four times the squared norms
  E8Table table{};
  int rows = 0;
  for (int pass = 0; pass < 2; ++pass) {
    for (int number = 0; number < kVectors && rows < kE8Rows; ++number) {
      uint32_t packed = 0;
      int norm = 0, sum = 0, rest = number;
      for (int i = 7; i >= 0; --i) {  // coordinate 7 changes fastest
        int const digit = rest % 3;
        rest /= 3;
        int const odd = 2 * digit + 1;
        norm += odd * odd;
        sum += odd;
        packed |= static_cast<uint32_t>(digit) << (2 * i);
      }
      bool const taken = pass == 0 ? norm <= kFull : norm == kBorder;
      if (!taken) continue;
      if (sum / 2 % 2 != 0) packed |= uint32_t{1} << 16;
      table.row[rows++] = packed;
    }
  }
  return table;
}

}  // namespace graphopt::vq
