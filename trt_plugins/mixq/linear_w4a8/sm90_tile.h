// Tiles of the Hopper w4a8 kernel: sizes and shared memory. Host and device.
#pragma once

#include <cstdint>

namespace graphopt::mixq {

/// A block's share of Y [M, N]: kTokens tokens and kRows rows of W, 64 to a warpgroup.
///   kSplit: blocks of a cluster that split K; the first one adds their sums.
template <int kTokens_, int kRows_, int kSplit_>
struct Sm90W4Tile {
  static constexpr int kTokens = kTokens_;
  static constexpr int kRows = kRows_;
  static constexpr int kSplit = kSplit_;
  static_assert(kTokens <= 256, "the rows of a box of the copy engine");
  static_assert(kRows == 64 || kRows == 128);
};

constexpr int kCodeRowBytes = 64;   // of W in a stage: 128 codes, or 32 outlier channels
constexpr int kStageColumns = 128;  // codes of a row in a stage

/// Sizes that follow from a tile and the 2-byte type T.
template <class T, class Tile_>
struct Sm90W4Traits {
  using Tile = Tile_;
  static_assert(sizeof(T) == 2);
  static constexpr int kConsumers = Tile::kRows / 64;  // warpgroups: each has 64 of the tile's rows of W
  static constexpr int kReaderWarps = 4 * kConsumers;
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr int kSums = Tile::kTokens / 2;  // registers
  static constexpr int kStageOutliers = kCodeRowBytes / int{sizeof(T)};

  // 40 + 2 x 232 registers for 128 threads each fit the 64 K of a multiprocessor. One consumer has enough anyway.
  static constexpr bool kMovesRegisters = kConsumers > 1;
  static constexpr int kProducerRegisters = 40;
  static constexpr int kConsumerRegisters = 232;

  static constexpr int kXBytes = Tile::kTokens * kStageColumns;
  static constexpr int kWBytes = Tile::kRows * kCodeRowBytes;
  static constexpr int kStageBytes = kXBytes + kWBytes;
  static constexpr int kStoreTokens = 32;
  static constexpr int kStoreBytes = kStoreTokens * 128;  // of 64 rows of W
  static constexpr int kStagingBytes = 2 * kConsumers * kStoreBytes;
  static constexpr int kPartBytes = Tile::kRows * Tile::kTokens * 4;  // int32 sums of one of the other blocks
  static constexpr int kPartsBytes = (Tile::kSplit - 1) * kPartBytes;
  static constexpr int kSxBytes = Tile::kTokens * 4;
  static constexpr int kBarrierBytes = 256;
  static constexpr int kMaxSharedBytes = 227 * 1024;
  static constexpr int kMostStages = 12;
  static constexpr int kFittingStages =
      (kMaxSharedBytes - kStagingBytes - kPartsBytes - kSxBytes - kBarrierBytes) / kStageBytes;
  static constexpr int kStages = kFittingStages < kMostStages ? kFittingStages : kMostStages;
  static_assert(kStages >= 3 && 8 * (2 * (kStages + kConsumers) + 3) <= kBarrierBytes);

  static constexpr int kStagingOffset = kStages * kStageBytes;
  static constexpr int kPartsOffset = kStagingOffset + kStagingBytes;
  static constexpr int kSxOffset = kPartsOffset + kPartsBytes;
  static constexpr int kBarrierOffset = kSxOffset + kSxBytes;
  static constexpr int kSharedBytes = kBarrierOffset + kBarrierBytes;
  static_assert(kXBytes % 1024 == 0 && kStageBytes % 1024 == 0 && kStoreBytes % 1024 == 0,
                "a swizzled tile starts at a multiple of 1024");
};

}  // namespace graphopt::mixq
