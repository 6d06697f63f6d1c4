// Tiles of the Hopper kernel: sizes and shared memory. Host and device.
#pragma once

#include <cstdint>

namespace graphopt::vq {

constexpr int kSm90Rows = 128;      // of W, in a block
constexpr int kWgmmaTileRows = 64;  // of them, of a warpgroup

/// Whether lanes decode whole vectors, see sm90_vectors.cuh.
template <class Weights>
constexpr bool kHasVectors = false;

/// Sizes that follow from a kind of weights and the tokens of a tile.
///   kGroups: pairs of warpgroups that share K stage by stage, and then add their sums: with few tokens, decoding is
///     all the work.
template <class Weights_, int kTokens_, int kGroups_ = 1>
struct Sm90Traits {
  using Weights = Weights_;
  using T = typename Weights::T;
  static_assert(sizeof(T) == 2 && kTokens_ <= 256 && (kGroups_ == 1 || kTokens_ <= 64));
  static constexpr int kTokens = kTokens_;
  static constexpr int kGroups = kGroups_;
  static constexpr int kColumns = 64;  // of K in a stage
  static constexpr int kHalves = 2;    // of a tile's rows of W
  static constexpr int kConsumers = kHalves * kGroups;  // warpgroups
  static constexpr int kReaderWarps = 4 * kHalves;      // of a stage
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr int kLoaderThreads = 96;  // that bring codebooks while others multiply
  static constexpr int kSums = kTokens / 2;  // registers
  static constexpr int kSteps = kColumns / 16;
  static constexpr int kWords = Weights::Codes::bits_of(kColumns) / 32;  // of codes of a row in a stage
  static_assert(Weights::Codes::bits_of(kColumns) % 32 == 0);
  static constexpr bool kVectors = kHasVectors<Weights>;
  static_assert(!kVectors || (Weights::Codes::kVector == 8 && !Weights::kTiled));
  static constexpr int kLaneWords = kVectors ? kWords / 4 : kWords;  // of them, that a lane reads
  static constexpr int kAhead = kGroups == 1 || kLaneWords <= 4 ? 2 : 1;  // stages of codes on their way

  // Stages that codes are brought into L2 ahead, where little else is to be done meanwhile. 0: they are not.
  static constexpr int kPrefetch = kGroups == 1 ? 0 : 16;

  // A multiprocessor has 64 K registers, and a block's threads begin with the same share of them, a multiple of 8.
  static constexpr int kGivenRegisters = 65536 / kThreads / 8 * 8;
  static constexpr int kProducerRegisters = kVectors && kGroups == 1 ? 88 : Weights::kTiled || kVectors ? 64 : 32;
  static constexpr int kConsumerRegisters =
      ((kConsumers + 1) * kGivenRegisters - kProducerRegisters) / kConsumers / 8 * 8;
  static_assert(kConsumerRegisters <= 256 - 8);

  static constexpr int kRowBytes = 2 * kColumns;  // of X in a stage: one swizzle row
  static constexpr int kStageBytes = kTokens * kRowBytes;
  static constexpr int kStoreTokens = 32;
  static constexpr int kStoreBytes = kStoreTokens * 128;  // of 64 rows of W
  static constexpr int kStagingBytes = 2 * kHalves * kStoreBytes;
  static constexpr int kBarrierBytes = 1024;
  static constexpr int kMaxSharedBytes = 227 * 1024;
  static constexpr int kMostStages = kVectors ? 12 : 8;

  // Y on its way, barriers, codebooks, and the ring of X. Codebooks that begin at a multiple of more than the block's
  // memory does are given room for that.
  static constexpr int kBarrierOffset = kStagingBytes;
  static constexpr int kAlignment = Weights::kAlignment < 1024 ? 1024 : Weights::kAlignment;
  static constexpr int kTableOffset = (kBarrierOffset + kBarrierBytes + kAlignment - 1) / kAlignment * kAlignment;
  static constexpr int kRingOffset = kTableOffset + Weights::kSharedBytes;
  static_assert(kAlignment == 1024 || kBarrierOffset + kBarrierBytes + 1024 <= kAlignment, "wherever memory begins");
  static constexpr int kFittingStages = (kMaxSharedBytes - kRingOffset) / kStageBytes;
  // Who takes every so-many-th stage must meet its stages again each time round: a barrier tells two phases apart only.
  static constexpr int kTurns = kGroups * (kVectors ? kLoaderThreads / 32 : 1);
  static constexpr int kStages = (kFittingStages < kMostStages ? kFittingStages : kMostStages) / kTurns * kTurns;
  static_assert(kStages >= 2 && 8 * (3 * kStages + 4) <= kBarrierBytes);
  static constexpr int kSharedBytes = kRingOffset + kStages * kStageBytes;
  static_assert(kStageBytes % 1024 == 0 && kStoreBytes % 1024 == 0, "a swizzled tile starts at a multiple of 1024");

  // Of a tile whose K is shared: sums of 64 rows that other warpgroups add, where the ring was.
  static constexpr int kSlotBytes = kWgmmaTileRows * kTokens * 4;
  static constexpr int kSlots = kGroups == 1 ? 1 : kConsumers;
  static_assert(kSlots * kSlotBytes <= kStages * kStageBytes);
};

}  // namespace graphopt::vq
