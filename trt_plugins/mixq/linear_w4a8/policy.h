// Which w4a8 kernel runs, and its tile. Host code only.
#pragma once

#include <cstdint>

#include "mixq/common/tile_shape.h"

namespace graphopt::mixq {

/// A block's share of Y in the kernel for few tokens: 16 kRowTiles rows of W and 8 kTokenTiles tokens.
///   kDepth: steps of 128 columns that a warp has on their way. kWarps: that split K.
template <int kRowTiles_, int kTokenTiles_, int kDepth_, int kWarps_>
struct SmallShape {
  static constexpr int kRowTiles = kRowTiles_;
  static constexpr int kTokenTiles = kTokenTiles_;
  static constexpr int kDepth = kDepth_;
  static constexpr int kWarps = kWarps_;
};

using Small8 = SmallShape<1, 1, 2, 12>;
using Small16 = SmallShape<1, 2, 2, 8>;
using Small32 = SmallShape<1, 4, 1, 8>;

// 96 KB of stages is the most that sm_86, 89 and 120 can hold.
using W4Tile256x128 = TileShape<256, 128, 64, 64, 4>;
using W4Tile128x128 = TileShape<128, 128, 64, 64, 5>;
using W4Tile128x128Narrow = TileShape<128, 128, 64, 32, 5>;
using W4Tile64x64 = TileShape<64, 64, 32, 32, 6>;

enum class LinearW4A8Kernel { kGeneric, kSmall8, kSmall16, kSmall32, kTile64x64, kTile128x128, kTile256x128 };

constexpr int64_t kTileColumns = 64;  // a tile's columns lie in one group

/// Logarithm of `group`; that of a group that no K reaches where all `k` columns share one; -1 where the fast kernels
/// do not take it.
constexpr int w4a8_group_shift(int64_t group, int64_t k) {
  constexpr int kOneGroup = 30;
  if (group >= k) return kOneGroup;
  if (group < kTileColumns) return -1;
  for (int shift = 0; shift < kOneGroup; ++shift) {
    if (group == int64_t{1} << shift) return shift;
  }
  return -1;
}

/// The kernel for few tokens where they are few, else the largest tile that still gives every multiprocessor a block.
/// On Hopper, tiles of wgmma take the place of these (sm90_policy.h).
///
/// Args:
///   m, n: sizes of Y.
///   vectors: K is a multiple of 16, every operand of the products is aligned to 16 bytes, and the group has a shift.
///   few_tokens: prefer the kernel for few tokens, which then goes over W several times.
///   multiprocessors: of the device.
constexpr LinearW4A8Kernel pick_linear_w4a8(int64_t m, int64_t n, bool vectors, bool few_tokens, int multiprocessors) {
  if (!vectors) return LinearW4A8Kernel::kGeneric;
  if (m <= 8) return LinearW4A8Kernel::kSmall8;
  if (m <= 16) return LinearW4A8Kernel::kSmall16;
  if (m <= 32 || few_tokens) return LinearW4A8Kernel::kSmall32;
  if (W4Tile256x128::blocks(m, n) >= multiprocessors) return LinearW4A8Kernel::kTile256x128;
  if (W4Tile128x128::blocks(m, n) >= multiprocessors) return LinearW4A8Kernel::kTile128x128;
  return LinearW4A8Kernel::kTile64x64;
}

}  // namespace graphopt::mixq
