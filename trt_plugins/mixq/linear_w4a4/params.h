// MixQ linear with 4-bit weights and activations: that of linear_w4a8 with packed activations,
//
//   y = T(sx sw sum over groups of sg (xq4 wq4^T within the group) + xo wo^T + bias)
//
// On compute capability 8.x, int4 tensor cores multiply the codes as they are, and each group's exact int32 sum is
// scaled by its integer. Everywhere else codes become int8 ones, which gives the same sums: in registers where tokens
// are few, else by a launch of their own.
#pragma once

#include "mixq/linear_w4a8/params.h"

namespace graphopt::mixq {

struct LinearW4A4Params {
  /// xq: [M, packed_bytes(K)], codes in -7..7 packed as those of wq4, 0 in outlier channels and in padding.
  LinearW4A8Params packed;  // group: a multiple of 32, or at least K
  void* workspace;          // w4a4_workspace_bytes, a multiple of 16
};

/// Tokens whose codes are unpacked at a time.
constexpr int64_t kUnpackedTokens = 8192;

/// Scratch bytes for `m` tokens of `k` codes.
constexpr int64_t w4a4_workspace_bytes(int64_t m, int64_t k) {
  return (m < kUnpackedTokens ? m : kUnpackedTokens) * 2 * packed_bytes(k);
}

Status launch_linear_w4a4(LinearW4A4Params const& params, cudaStream_t stream);

}  // namespace graphopt::mixq
