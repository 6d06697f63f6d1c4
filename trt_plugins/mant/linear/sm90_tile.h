// Tile of the Hopper M-ANT linear: sizes and shared memory. Host and device.
#pragma once

#include <cstdint>

namespace graphopt::mant {

constexpr int kSm90Rows = 128;           // of W, in a block
constexpr int kSm90Columns = 128;        // of a stage
constexpr int kSm90CodeBytes = 64;       // of a row of W in a stage
constexpr int kSm90Segment = 64;         // columns whose sums are scaled together; they lie in one group
// For 128 threads each, they fit the 64 K of a multiprocessor.
constexpr int kSm90ProducerRegisters = 40;
constexpr int kSm90ConsumerRegisters = 232;
constexpr int64_t kFoldedTokens = 256;  // of a tile where numbers carry their scales
constexpr int kSm90MaxSharedBytes = 227 * 1024;

/// Of the kernel that scales sums: int8 x, 128 tokens.
struct Sm90Tile {
  static constexpr int kTokens = 128;
  static constexpr int kConsumers = 2;  // warpgroups: the halves of a tile's rows of W
  static constexpr int kReaderWarps = 4 * kConsumers;
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr int kXBytes = kTokens * kSm90Columns;  // of a stage
  static constexpr int kWBytes = kSm90Rows * kSm90CodeBytes;
  static constexpr int kSegments = kSm90Columns / kSm90Segment;
  static constexpr int kStages = 8;

  static constexpr int kStoreTokens = 32;
  static constexpr int kStoreBytes = kStoreTokens * 128;  // of 64 rows of W
  static constexpr int kStagingOffset = kStages * (kXBytes + kWBytes);
  static constexpr int kTableOffset = kStagingOffset + 2 * kConsumers * kStoreBytes;
  static constexpr int kBarrierOffset = kTableOffset + 512;
  static constexpr int kSharedBytes = kBarrierOffset + 16 * kStages;
  static_assert(kSharedBytes <= kSm90MaxSharedBytes);
};

/// Of the kernel whose numbers carry their scales: 256 tokens, 128 bytes of x and kCodeBytes of codes in a stage.
template <int kCodeBytes>
struct FoldedTile {
  static constexpr int kTokens = kFoldedTokens;
  static constexpr int kCluster = 2;  // blocks with the same tokens
  static constexpr int kConsumers = 2;
  static constexpr int kReaderWarps = 4 * kConsumers;
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr int kXBytes = kTokens * 128;
  static constexpr int kWBytes = kSm90Rows * kCodeBytes;
  static constexpr int kStages = 5;

  static constexpr int kStoreTokens = 32;
  static constexpr int kStoreBytes = kStoreTokens * 128;
  static constexpr int kStagingOffset = kStages * (kXBytes + kWBytes);
  static constexpr int kTableOffset = kStagingOffset + 2 * kConsumers * kStoreBytes;
  static constexpr int kBarrierOffset = kTableOffset + 512;
  static constexpr int kSharedBytes = kBarrierOffset + 16 * kStages;
  static_assert(kSharedBytes <= kSm90MaxSharedBytes && (kXBytes + kWBytes) % 1024 == 0);
};

}  // namespace graphopt::mant
