// Tile of the Hopper M-ANT linear for some dozens of tokens: sizes, shared memory, into how many parts K is split, and
// how long that takes. Host and device.
#pragma once

#include <cstdint>

namespace graphopt::mant {

/// kConsumers warpgroups of 64 rows of W each, and a warp that brings in what they multiply.
///   kTokens: of a block, 64 or 128.
template <int kTokens_>
struct MidTile {
  static constexpr int kTokens = kTokens_;
  static constexpr int kConsumers = 2;
  static constexpr int kBlocks = 128 / kTokens;  // of a multiprocessor
  static constexpr int kRows = 64 * kConsumers;
  static constexpr int kColumns = 64;  // of a stage: 128 bytes of x
  static constexpr int kConsumerThreads = 128 * kConsumers;
  static constexpr int kThreads = kConsumerThreads + 32;
  static constexpr int kStages = 8;
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

/// Blocks that the device holds at once.
template <class Tile>
constexpr int64_t mid_slots(int split, int multiprocessors) {
  int64_t const slots = int64_t{multiprocessors} * Tile::kBlocks;
  return split > 2 ? slots * 15 / 16 : slots;  // larger clusters do not fit everywhere
}

/// Estimated microseconds on an H100 SXM: of the busiest multiprocessor. Two blocks of it take twice as long as one:
/// products whose W comes from registers are what it has no more of.
///
/// Args:
///   tiles: of Y.
///   stages: along K.
template <class Tile>
constexpr double mid_tile_time(int64_t tiles, int64_t stages, int split, int multiprocessors) {
  constexpr double kStageTime = Tile::kTokens == 64 ? 0.42 : 0.50;
  int64_t const own = 4 + 4 * split;  // what a block takes beside its stages, in stages: more sums meet
  int64_t const slots = mid_slots<Tile>(split, multiprocessors), blocks = tiles * split, rest = blocks % slots;
  int64_t const last = (rest + multiprocessors - 1) / multiprocessors;
  return static_cast<double>((blocks / slots * Tile::kBlocks + last) * (mid_stages(stages, split) + own)) * kStageTime;
}

/// How a product is divided.
struct MidPlan {
  int tokens;   // of a block
  int split;    // blocks of a cluster, which divide K among them
  double time;  // estimated
};

template <class Tile>
constexpr MidPlan plan_mid_tile(int64_t m, int64_t n, int64_t k, int multiprocessors) {
  auto const along = [](int64_t size, int64_t per_tile) { return (size + per_tile - 1) / per_tile; };
  int64_t const tiles = along(m, Tile::kTokens) * along(n, Tile::kRows), stages = along(k, Tile::kColumns);
  MidPlan best{};
  for (int split = 1; split <= 8; split *= 2) {
    double const time = mid_tile_time<Tile>(tiles, stages, split, multiprocessors);
    if (split == 1 || time < best.time) best = {Tile::kTokens, split, time};
  }
  return best;
}

constexpr MidPlan plan_mid(int64_t m, int64_t n, int64_t k, int multiprocessors) {
  MidPlan const small = plan_mid_tile<MidTile<64>>(m, n, k, multiprocessors);
  MidPlan const large = plan_mid_tile<MidTile<128>>(m, n, k, multiprocessors);
  return small.time <= large.time ? small : large;
}

}  // namespace graphopt::mant
