// Which M-ANT linear kernel runs, and its share of Y. Host code only.
#pragma once

#include <cstdint>

#include "mant/linear/params.h"

namespace graphopt::mant {

/// How codes become numbers where tokens are few: by byte permutes for x of T; where x is int8 and must be widened by the
/// same units, by arithmetic, or half of the rows by a table of pairs.
enum class FewCodes { kFloat, kSteps, kPairs };

/// A block's share of Y in the kernel for few tokens: 16 kRowTiles rows of W and 8 kTokenTiles tokens.
///   kWarps: that split K, at most: as many as shared memory holds. kStages: of 128 columns that each of them has in
/// shared memory or on the way there.
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

using Few8 = FewShape<2, 1, 8, 3, 2>;
using Few8Steps = FewShape<2, 1, 8, 4, 2>;  // no table of pairs leaves room for another stage
using Few16 = FewShape<2, 2, 8, 2, 2>;
using Few16Wide = FewShape<4, 2, 12, 2, 1>;
using Few32 = FewShape<4, 4, 8, 2, 1>;

constexpr int64_t kMostFewTokens = 96;  // on Hopper where weights may not be rounded; above, wgmma

// The kernel for some dozens of tokens on Hopper rounds weights to 16 bits, scale and all, and wants x as T.
constexpr int64_t kLeastMid = 33;
constexpr int64_t kMostMid = 256;
constexpr int64_t kAlwaysMid = 128;  // above, weights of kBytes become int8, and the others go by estimate
constexpr bool is_mid(Decode decode, int64_t m) {
  return m >= kLeastMid && m <= (decode == Decode::kBytes ? kAlwaysMid : kMostMid);
}

/// kFew<tokens>: of a block.
enum class LinearKernel { kGeneric, kFew8, kFew16, kFew16Wide, kFew32 };

/// Args:
///   m, n: sizes of Y.
///   vectors: operands can be read in vectors of 16 bytes that lie in one group.
///   multiprocessors: of the device.
constexpr LinearKernel pick_linear(Decode decode, int64_t m, int64_t n, bool vectors, int multiprocessors) {
  if (!vectors) return LinearKernel::kGeneric;
  if (m <= 8) return LinearKernel::kFew8;
  if (m > 16) return LinearKernel::kFew32;
  // Twice the rows halve the reads of X and the widening of its bytes, where such blocks fill the device once.
  bool const once = n * 16 >= int64_t{Few16Wide::kRows} * 15 * multiprocessors &&
                    n <= int64_t{Few16Wide::kRows} * multiprocessors;
  return once && decode != Decode::kFloat ? LinearKernel::kFew16Wide : LinearKernel::kFew16;
}

}  // namespace graphopt::mant
