// Which w4a4 kernel runs, and its tile. Host code only.
#pragma once

#include <cstdint>

#include "mixq/linear/policy.h"

namespace graphopt::mixq {

// 64 x 32 per warp: scaling the groups' sums leaves no registers for more. A stage holds 128 codes of a row.
using W4A4Tile128x128 = TileShape<128, 128, 64, 32, 4>;
using W4A4Tile64x64 = TileShape<64, 64, 32, 32, 6>;

enum class LinearW4A4Kernel { kUnpack, kSmall8, kSmall16, kSmall32, kTile64x64, kTile128x128 };

/// The kernel for few tokens where they are few, else int4 products where the device has them.
///
/// Args:
///   m, n: sizes of Y.
///   vectors: every operand of the products is aligned to 16 bytes, and the group has a shift.
///   int4: the device multiplies int4, and scales can be read in pairs.
///   multiprocessors: of the device.
constexpr LinearW4A4Kernel pick_linear_w4a4(int64_t m, int64_t n, bool vectors, bool int4, int multiprocessors) {
  if (!vectors) return LinearW4A4Kernel::kUnpack;
  if (m <= 8) return LinearW4A4Kernel::kSmall8;
  if (m <= 16) return LinearW4A4Kernel::kSmall16;
  if (m <= 32) return LinearW4A4Kernel::kSmall32;
  if (!int4) return LinearW4A4Kernel::kUnpack;
  if (W4A4Tile128x128::blocks(m, n) >= multiprocessors) return LinearW4A4Kernel::kTile128x128;
  return LinearW4A4Kernel::kTile64x64;
}

}  // namespace graphopt::mixq
