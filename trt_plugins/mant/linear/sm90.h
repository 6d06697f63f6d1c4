// M-ANT linear by the wgmma of Hopper: what it takes, and its launch.
#pragma once

#include "common/launch.h"
#include "mant/linear/check.h"
#include "mant/linear/params.h"

namespace graphopt::mant {

/// Whether `p`, whose operands can be read in vectors, also suits the copy engine, has a 2-byte T, groups of 64 columns
/// or
/// more, and one scale for each token.
inline bool supports_sm90(LinearParams const& p) {
  constexpr size_t kAlignment = 16;
  constexpr int64_t kMaxRows = int64_t{1} << 30;  // row numbers, rounded up to tiles, are int32
  constexpr int64_t kMaxTiles = int64_t{1} << 30;
  constexpr int kLeastShift = 6;
  int64_t const tiles = (p.m / 128 + 1) * (p.n / 128 + 1);
  bool const one_scale = p.decode == Decode::kFloat || p.scales == 1;
  return element_size(p.dtype) == 2 && one_scale && group_shift(p) >= kLeastShift && is_aligned(p.y, kAlignment) &&
         p.m <= kMaxRows && p.n <= kMaxRows && tiles <= kMaxTiles;
}

/// Enqueue y by wgmma. `p` must be supported, and have passed the checks of launch_linear.
Status launch_linear_sm90(LinearParams const& p, int multiprocessors, cudaStream_t stream);

}  // namespace graphopt::mant
