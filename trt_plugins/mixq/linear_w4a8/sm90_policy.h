// Which Hopper w4a8 kernel runs. Host code only.
//
// Tiles of Y run in waves, as many as the device holds at once, and a wave takes as long as one of its tiles. The
// numbers describe an H100 SXM; benchmarks/results/h100/mixq_w4a8.json has the measurements, and a test compares the
// choice with the fastest kernel in it.
#pragma once

#include <cstdint>

namespace graphopt::mixq {

/// kFewTokens: kernel_small.cuh. kTile<tokens>x<rows of W>[Split]: Split: two blocks share a tile, each with half of K.
enum class Sm90W4Kernel {
  kFewTokens,
  kTile64x64Split,
  kTile64x128,
  kTile64x128Split,
  kTile128x64,
  kTile128x64Split,
  kTile128x128,
  kTile128x128Split,
  kTile256x128,
};

/// What a tile costs.
struct Sm90W4Cost {
  Sm90W4Kernel kernel;
  int64_t tokens;
  int64_t rows;      // of W
  int64_t blocks;    // that share a tile
  double per_stage;  // microseconds for 128 codes of K or 32 outlier channels
  double per_tile;   // microseconds to exchange sums
};

constexpr int64_t kFewTokens = 32;          // that the kernel for few tokens takes at once, and always
constexpr int64_t kMostFewTokens = 64;      // that it is considered for
constexpr double kFewTokensTime = 2.86e-7;  // microseconds for each code of W, each time

constexpr Sm90W4Cost kSm90W4Costs[] = {
    {Sm90W4Kernel::kTile64x64Split, 64, 64, 2, 0.33, 1.0},     {Sm90W4Kernel::kTile64x128, 64, 128, 1, 0.40, 0.0},
    {Sm90W4Kernel::kTile64x128Split, 64, 128, 2, 0.48, 1.3},   {Sm90W4Kernel::kTile128x64, 128, 64, 1, 0.35, 0.0},
    {Sm90W4Kernel::kTile128x64Split, 128, 64, 2, 0.375, 1.8},  {Sm90W4Kernel::kTile128x128, 128, 128, 1, 0.48, 0.0},
    {Sm90W4Kernel::kTile128x128Split, 128, 128, 2, 0.53, 2.2}, {Sm90W4Kernel::kTile256x128, 256, 128, 1, 0.69, 0.0},
};

/// Estimated microseconds for Y [M, N] and K, without the launch. See pick_sm90_w4.
constexpr double sm90_w4_time(Sm90W4Cost const& cost, int64_t m, int64_t n, int64_t k, int64_t capacity,
                              int multiprocessors) {
  int64_t const tiles = (m + cost.tokens - 1) / cost.tokens * ((n + cost.rows - 1) / cost.rows);
  int64_t const at_once = multiprocessors / cost.blocks;
  int64_t const waves = (tiles + at_once - 1) / at_once;
  auto const codes = static_cast<double>((k + 127) / 128), outliers = static_cast<double>((capacity + 31) / 32);
  double const stages = codes / static_cast<double>(cost.blocks) + outliers;
  return static_cast<double>(waves) * (stages * cost.per_stage + cost.per_tile);
}

/// The kernel that is estimated to be fastest.
///
/// Args:
///   m, n, k, capacity: sizes, see LinearW4A8Params.
///   multiprocessors: of the device, 2 or more.
constexpr Sm90W4Kernel pick_sm90_w4(int64_t m, int64_t n, int64_t k, int64_t capacity, int multiprocessors) {
  if (m <= kFewTokens) return Sm90W4Kernel::kFewTokens;
  Sm90W4Kernel best = Sm90W4Kernel::kTile64x128;
  double least = 1e300;
  if (m <= kMostFewTokens) {
    best = Sm90W4Kernel::kFewTokens;
    least = kFewTokensTime * 2.0 * static_cast<double>(n) * static_cast<double>(k);
  }
  for (Sm90W4Cost const& cost : kSm90W4Costs) {
    double const time = sm90_w4_time(cost, m, n, k, capacity, multiprocessors);
    if (time < least) {
      best = cost.kernel;
      least = time;
    }
  }
  return best;
}

}  // namespace graphopt::mixq
