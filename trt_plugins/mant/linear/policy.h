// Which M-ANT linear kernel runs, and its share of Y. Host code only.
#pragma once

#include <cstdint>
#include <cstdlib>

#include "mant/linear/params.h"

#ifndef MANTFEW_WIDE_WARPS
#define MANTFEW_WIDE_WARPS 16
#endif

namespace graphopt::mant {

/// A choice that waits for a measurement: GRAPHOPT_MANT_<name> of the environment in builds with GRAPHOPT_TUNE.
#ifdef GRAPHOPT_TUNE
inline int64_t choice(char const* name, int64_t otherwise) {
  char const* const value = std::getenv(name);
  return value == nullptr ? otherwise : std::atoll(value);
}
#else
constexpr int64_t choice(char const*, int64_t otherwise) { return otherwise; }
#endif

/// A block's share of Y in the kernel for few tokens: 16 kRowTiles rows of W and 8 kTokenTiles tokens.
///   kWarps: that split K, at most: as many as shared memory holds. kStages: of 128 columns that each of them has in
// shared memory or on the way there.
///   kBlocks: of a multiprocessor, for which registers are kept free.
template <int kRowTiles_, int kTokenTiles_, int kWarps_, int kStages_, int kBlocks_>
struct FewShape {
  static constexpr int kRowTiles = kRowTiles_;
  static constexpr int kTokenTiles = kTokenTiles_;
  static constexpr int kWarps = kWarps_;
  static constexpr int kStages = kStages_;
  static constexpr int kBlocks = kBlocks_;
  static constexpr int kRows = 16 * kRowTiles;
  static constexpr int kTokens = 8 * kTokenTiles;
  static_assert(kRowTiles % 2 == 0, "16 bytes of types are those of 32 rows");
};

/// kRoom: x is int8 and no table of pairs needs shared memory, so there is room for another stage.
template <bool kRoom>
struct FewShapes {
  using Few8 = FewShape<2, 1, 8, kRoom ? 4 : 3, 2>;
  using Few16 = FewShape<2, 2, 8, kRoom ? 3 : 2, 2>;
  using Few16Wide = FewShape<4, 2, kRoom ? MANTFEW_WIDE_WARPS : 12, 2, 1>;
  using Few32 = FewShape<4, 4, 8, kRoom ? 3 : 2, 1>;
};

constexpr int64_t kMostFewTokens = 96;  // on Hopper; above, wgmma

// That the kernel for some dozens of tokens takes on Hopper. It rounds weights to 16 bits, scale and all, and wants x as T.
inline int64_t least_mid() { return choice("GRAPHOPT_MANT_MID_FROM", 33); }
inline int64_t most_mid() { return choice("GRAPHOPT_MANT_MID_TO", 192); }
inline bool is_mid(Decode decode, int64_t m) {
  // Above, weights of kBytes become int8.
  return m >= least_mid() && m <= (decode == Decode::kBytes ? kMostFewTokens : most_mid());
}

/// kFew<tokens>: of a block.
enum class LinearKernel { kGeneric, kFew8, kFew16, kFew16Wide, kFew32 };

/// Args:
///   m, n: sizes of Y.
///   vectors: operands can be read in vectors of 16 bytes that lie in one group.
///   multiprocessors: of the device.
inline LinearKernel pick_linear(int64_t m, int64_t n, bool vectors, int multiprocessors) {
  if (!vectors) return LinearKernel::kGeneric;
  if (m <= 8) return LinearKernel::kFew8;
  if (m > 16) return LinearKernel::kFew32;
  // Twice the rows halve the reads of X and what is done with it, where such blocks fill the device.
  bool const wide = choice("GRAPHOPT_MANT_WIDE", 1) != 0 && n * 16 >= int64_t{64} * 15 * multiprocessors;
  return wide ? LinearKernel::kFew16Wide : LinearKernel::kFew16;
}

}  // namespace graphopt::mant
