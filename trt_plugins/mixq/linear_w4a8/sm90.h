// MixQ linear with 4-bit weights by the wgmma of Hopper: what it takes, and its launch. See sm90_policy.h for the
// choice of kernel.
#pragma once

#include "common/launch.h"
#include "mixq/linear_w4a8/params.h"
#include "mixq/linear_w4a8/sm90_policy.h"

namespace graphopt::mixq {

/// Whether `p`, whose products can read vectors, also suits the copy engine, and has a 2-byte T.
inline bool supports_sm90(LinearW4A8Params const& p) {
  constexpr size_t kAlignment = 16;
  constexpr int64_t kMaxRows = int64_t{1} << 30;  // row numbers, rounded up to clusters of tiles, are int32
  constexpr int64_t kMaxTiles = int64_t{1} << 30;
  int64_t const tiles = (p.m / 64 + 1) * (p.n / 128 + 1);
  return element_size(p.dtype) == 2 && p.n % 8 == 0 && is_aligned(p.y, kAlignment) &&
         is_aligned(p.residual, kAlignment) && p.m <= kMaxRows && p.n <= kMaxRows && tiles <= kMaxTiles;
}

/// Enqueue y by one of the wgmma kernels. `p` must be supported, and have passed the checks of launch_linear_w4a8.
template <class T>
Status launch_linear_w4a8_sm90(LinearW4A8Params const& p, Sm90W4Kernel kernel, int multiprocessors,
                               cudaStream_t stream);

}  // namespace graphopt::mixq
