// What the Hopper M-ANT linears for more than a few tokens make of their operands first, and where they put it.
//
//   split   x as float16, exact: int8 weights cannot hold scale and type exactly, float16 ones to 2^-11
//           (up to 128 tokens of bytes, too)
//   bytes   a table of eight int8 for each group and row of W: round(scale table / row_scale), row_scale the largest of
//           the row over 127
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

#include "common/tensor.h"
#include "mant/linear/params.h"
#include "mant/linear/policy.h"
#include "mant/linear/sm90_tile.h"

namespace graphopt::mant {

/// Of Decode::kBytes.
struct FoldedTables {
  uint2* positive;   // [groups, N] codes 0..7
  uint2* negative;   // [groups, N] codes 8..15; written where they do not mirror codes 0..7
  float* row_scale;  // [N]
};

/// Tokens that the workspace holds as float16, a multiple of a tile's or all of them.
constexpr int64_t most_widened_tokens(int64_t m, int64_t k) {
  constexpr int64_t kElements = int64_t{1} << 26;
  return std::min(m, std::max(kFoldedTokens, kElements / k / kFoldedTokens * kFoldedTokens));
}

/// Tokens whose x is widened at once: about as many every time.
constexpr int64_t widened_tokens(int64_t m, int64_t k) {
  int64_t const most = most_widened_tokens(m, k), parts = (m + most - 1) / most;
  return std::min(m, ((m + parts - 1) / parts + kFoldedTokens - 1) / kFoldedTokens * kFoldedTokens);
}

/// Bytes that these take in the workspace.
///
/// Args:
///   groups: ceil(K / group).
constexpr int64_t prepared_bytes(Decode decode, int64_t m, int64_t n, int64_t k, int64_t groups) {
  if (decode == Decode::kFloat) return 0;
  bool const widens = decode == Decode::kSplit || m <= kAlwaysMid;
  return widens ? most_widened_tokens(m, k) * k * 2 : groups * n * 16 + n * 4;
}

inline FoldedTables folded_tables(void* workspace, int64_t n, int64_t groups) {
  auto* const positive = static_cast<uint2*>(workspace);
  return {positive, positive + groups * n, reinterpret_cast<float*>(positive + 2 * groups * n)};
}

}  // namespace graphopt::mant
