// Tiles of the Hopper matrix product: sizes and shared memory. Host and device.
#pragma once

#include <cstdint>

namespace graphopt {

/// A block's share of Y [M, N], and how many blocks below each other form a cluster, whose blocks share rows of W.
///   kRowsM, kRowsN: rows of X and of W in a block.
template <int kRowsM_, int kRowsN_, int kCluster_>
struct GemmTile {
  static constexpr int kRowsM = kRowsM_;
  static constexpr int kRowsN = kRowsN_;
  static constexpr int kCluster = kCluster_;
  static_assert(kRowsM <= 256 && kRowsN <= 256, "the rows of a box of the copy engine");
};

constexpr int kStageRowBytes = 128;  // along K or C, of a row in a stage

/// Types, and the sizes that follow from them and a tile.
///   X: of the operands, int8_t or of 2 bytes. T: of bias, y and outliers, of 2 bytes.
///   kOutliers: as in MixQ's linear, the product of outlier channels is added, a residual may be, W is constant, and sx
///   and sw are there.
template <class X_, class T_, class Tile_, bool kOutliers_>
struct GemmTraits {
  using X = X_;
  using T = T_;
  using Tile = Tile_;
  static constexpr bool kOutliers = kOutliers_;
  static_assert(sizeof(T) == 2);
  static constexpr int kWgmmaRowsM = 64;
  static constexpr int kConsumers = 2;               // warpgroups: the halves of a tile in M
  static constexpr int kReaderWarps = 4 * kConsumers;
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr int kRows = Tile::kRowsM / kConsumers;  // of Y, of a warpgroup
  static constexpr int kBlocks = kRows / kWgmmaRowsM;
  static constexpr int kSums = Tile::kRowsN / 2;     // registers of one block
  static_assert(kBlocks * kWgmmaRowsM == kRows && kBlocks * kSums <= 128);

  // 40 + 2 x 232 registers for 128 threads each fit the 64 K of a multiprocessor.
  static constexpr int kProducerRegisters = 40;
  static constexpr int kConsumerRegisters = 232;

  static constexpr int kXBytes = Tile::kRowsM * kStageRowBytes;
  static constexpr int kWBytes = Tile::kRowsN * kStageRowBytes;
  static constexpr int kStageBytes = kXBytes + kWBytes;
  static constexpr int kStoreCols = kStageRowBytes / int{sizeof(T)};
  static constexpr int kStoreBytes = kWgmmaRowsM * kStageRowBytes;
  static constexpr int kStagingBytes = 2 * kConsumers * kStoreBytes;
  static constexpr int kSwBytes = Tile::kRowsN * 4;
  static constexpr int kVectorBytes = kSwBytes + Tile::kRowsN * int{sizeof(T)};  // sw and bias of a tile
  static constexpr int kBarrierBytes = 256;
  static constexpr int kMaxSharedBytes = 227 * 1024;
  static constexpr int kStages = (kMaxSharedBytes - kStagingBytes - kVectorBytes - kBarrierBytes) / kStageBytes;
  static_assert(kStages >= 3 && 8 * 2 * (kStages + 1 + kConsumers) <= kBarrierBytes);

  static constexpr int kStagingOffset = kStages * kStageBytes;
  static constexpr int kVectorOffset = kStagingOffset + kStagingBytes;
  static constexpr int kBarrierOffset = kVectorOffset + kVectorBytes;
  static constexpr int kSharedBytes = kBarrierOffset + kBarrierBytes;
  static_assert(kStageBytes % 1024 == 0 && kStoreBytes % 1024 == 0, "a swizzled tile starts at a multiple of 1024");
};

}  // namespace graphopt
