// Tile of the Hopper M-ANT linear for some dozens of tokens: sizes, shared memory, and into how many parts K is split.
// Host and device.
#pragma once

#include <cstdint>

namespace graphopt::mant {

// A choice that waits for a measurement: 2 or 4.
#ifndef MANTFEW_MID_GROUPS
#define MANTFEW_MID_GROUPS 2
#endif

/// kConsumers warpgroups of 64 rows of W each, and a warp that brings in what they multiply.
struct MidTile {
  static constexpr int kTokens = 64;
  static constexpr int kConsumers = MANTFEW_MID_GROUPS;
  static constexpr int kBlocks = 4 / kConsumers;  // of a multiprocessor
  static constexpr int kRows = 64 * kConsumers;
  static constexpr int kColumns = 64;  // of a stage: 128 bytes of x
  static constexpr int kConsumerThreads = 128 * kConsumers;
  static constexpr int kThreads = kConsumerThreads + 32;
  static constexpr int kStages = kConsumers == 2 ? 8 : 12;
  static constexpr int kXBytes = kTokens * kColumns * 2;
  static constexpr int kCodeBytes = kColumns / 2;  // of a row of W in a stage
  static constexpr int kWBytes = kRows * kCodeBytes;
  static constexpr int kScaleBytes = kRows * 2;  // of a stage, which lies in one group
  static constexpr int kTypeBytes = kRows / 2;

  static constexpr int kGroupOffset = kStages * (kXBytes + kWBytes);
  static constexpr int kTableOffset = kGroupOffset + kStages * (kScaleBytes + kTypeBytes);
  static constexpr int kBarrierOffset = kTableOffset + 512;
  static constexpr int kSharedBytes = kBarrierOffset + 16 * kStages;
  static_assert(kBlocks * (kSharedBytes + 1024) <= 228 * 1024);
  static_assert((kXBytes + kWBytes) % 1024 == 0 && kXBytes % 1024 == 0, "as swizzled tiles ask");

  // Sums of a block on their way to those of the others: [tokens][kPartPitch] float.
  static constexpr int kPartPitch = kRows + 4;  // a warp's stores meet all banks alike
  static_assert(kTokens * kPartPitch * 4 <= kGroupOffset, "they take the place of the stages");
};

/// Stages of each of `split` blocks that divide K, even as two take turns.
constexpr int64_t mid_stages(int64_t stages, int split) { return (stages + 2 * split - 1) / (2 * split) * 2; }

/// Blocks of a cluster, which divide K among them: those that take the fewest rounds of stages.
///
/// Args:
///   tiles: of Y.
///   stages: along K.
constexpr int mid_split(int64_t tiles, int64_t stages, int multiprocessors) {
  constexpr int64_t kOwnStages = 6;  // what a block takes beside its stages, in stages
  int64_t const slots = int64_t{multiprocessors} * MidTile::kBlocks;
  int best = 1;
  int64_t least = 0;
  for (int split = 1; split <= 8; split *= 2) {
    int64_t const time = (tiles * split + slots - 1) / slots * (mid_stages(stages, split) + kOwnStages);
    if (split == 1 || time < least) best = split, least = time;
  }
  return best;
}

}  // namespace graphopt::mant
