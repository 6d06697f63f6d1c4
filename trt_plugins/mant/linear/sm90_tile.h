// Tile of the Hopper M-ANT linear: sizes and shared memory. Host and device.
#pragma once

#include <cstdint>

namespace graphopt::mant {

constexpr int kSm90Rows = 128;           // of W, in a block
constexpr int kSm90Columns = 128;        // of a stage
constexpr int kSm90CodeBytes = 64;       // of a row of W in a stage
constexpr int kSm90Segment = 64;         // columns whose sums are scaled together; they lie in one group

/// Sizes that follow from the tokens of a block and the bytes of an element of x.
template <int kTokens_, int kXBytes_>
struct Sm90Traits {
  static constexpr int kTokens = kTokens_;
  static constexpr int kXBytes = kXBytes_;
  static constexpr int kConsumers = 2;  // warpgroups: the halves of a tile's rows of W
  static constexpr int kReaderWarps = 4 * kConsumers;
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr int kBoxBytes = 128;                            // of a token's columns in one copy
  static constexpr int kBoxes = kSm90Columns * kXBytes / kBoxBytes;  // side by side
  static constexpr int kXBytesStage = kTokens * kSm90Columns * kXBytes;
  static constexpr int kWBytes = kSm90Rows * kSm90CodeBytes;
  static constexpr int kSegments = kSm90Columns / kSm90Segment;
  static constexpr int kStageBytes = kXBytesStage + kWBytes;

  static constexpr int kStoreTokens = 32;
  static constexpr int kStoreBytes = kStoreTokens * 128;  // of 64 rows of W
  static constexpr int kStagingBytes = 2 * kConsumers * kStoreBytes;
  static constexpr int kTableBytes = 512;
  static constexpr int kBarrierBytes = 256;
  static constexpr int kMaxSharedBytes = 227 * 1024;
  static constexpr int kMostStages = 8;
  static constexpr int kFittingStages = (kMaxSharedBytes - kStagingBytes - kTableBytes - kBarrierBytes) / kStageBytes;
  static constexpr int kStages = kFittingStages < kMostStages ? kFittingStages : kMostStages;
  static_assert(kStages >= 2 && 16 * kStages <= kBarrierBytes);

  static constexpr int kStagingOffset = kStages * kStageBytes;
  static constexpr int kTableOffset = kStagingOffset + kStagingBytes;
  static constexpr int kBarrierOffset = kTableOffset + kTableBytes;
  static constexpr int kSharedBytes = kBarrierOffset + kBarrierBytes;
  static_assert(kXBytesStage % 1024 == 0 && kStageBytes % 1024 == 0 && kStoreBytes % 1024 == 0,
                "a swizzled tile starts at a multiple of 1024");
};

}  // namespace graphopt::mant
