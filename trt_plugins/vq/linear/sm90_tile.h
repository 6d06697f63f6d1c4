// Tiles of the Hopper kernel: sizes and shared memory. Host and device.
#pragma once

#include <cstdint>

namespace graphopt::vq {

constexpr int kSm90Rows = 128;  // of W, in a block

/// Sizes that follow from a kind of weights and the tokens of a tile.
template <class Weights_, int kTokens_>
struct Sm90Traits {
  using Weights = Weights_;
  using T = typename Weights::T;
  static_assert(sizeof(T) == 2 && kTokens_ <= 256);
  static constexpr int kTokens = kTokens_;
  static constexpr int kColumns = 64;  // of K in a stage
  static constexpr int kConsumers = 2;  // warpgroups: the halves of a tile's rows of W
  static constexpr int kReaderWarps = 4 * kConsumers;
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr int kLoaderThreads = 96;  // that bring codebooks while others multiply
  static constexpr int kSums = kTokens / 2;  // registers
  static constexpr int kSteps = kColumns / 16;
  static constexpr int kWords = Weights::Codes::bits_of(kColumns) / 32;  // of codes of a row in a stage
  static_assert(Weights::Codes::bits_of(kColumns) % 32 == 0);

  // 40 + 2 x 232 registers for 128 threads each fit the 64 K of a multiprocessor.
  static constexpr int kProducerRegisters = 40;
  static constexpr int kConsumerRegisters = 232;

  static constexpr int kRowBytes = 2 * kColumns;  // of X in a stage: one swizzle row
  static constexpr int kStageBytes = kTokens * kRowBytes;
  static constexpr int kStoreTokens = 32;
  static constexpr int kStoreBytes = kStoreTokens * 128;  // of 64 rows of W
  static constexpr int kStagingBytes = 2 * kConsumers * kStoreBytes;
  static constexpr int kBarrierBytes = 256;
  static constexpr int kMaxSharedBytes = 227 * 1024;
  static constexpr int kMostStages = 8;
  static constexpr int kFittingStages =
      (kMaxSharedBytes - kStagingBytes - Weights::kSharedBytes - kBarrierBytes) / kStageBytes;
  static constexpr int kStages = kFittingStages < kMostStages ? kFittingStages : kMostStages;
  static_assert(kStages >= 2 && 8 * (2 * kStages + 4) <= kBarrierBytes);

  static constexpr int kStagingOffset = kStages * kStageBytes;
  static constexpr int kTableOffset = kStagingOffset + kStagingBytes;
  static constexpr int kBarrierOffset = kTableOffset + Weights::kSharedBytes;
  static constexpr int kSharedBytes = kBarrierOffset + kBarrierBytes;
  static_assert(kStageBytes % 1024 == 0 && kStoreBytes % 1024 == 0, "a swizzled tile starts at a multiple of 1024");
};

}  // namespace graphopt::vq
