// MixQ linear by the wgmma of Hopper: what it takes, and its launch. The kernel is
// common/gemm's; see sm90_policy.h for the choice of its tile.
#pragma once

#include "common/launch.h"
#include "mixq/linear/params.h"
#include "mixq/linear/sm90_policy.h"

namespace graphopt::mixq {

/// Whether `p` suits the copy engine: rows of 16-byte multiples at 16-byte addresses, and a 2-byte T.
inline bool supports_sm90(LinearParams const& p) {
  constexpr size_t kAlignment = 16;
  constexpr int64_t kMaxRows = int64_t{1} << 30;  // row numbers, rounded up to clusters of tiles, are int32
  for (void const* pointer : {static_cast<void const*>(p.xq), static_cast<void const*>(p.wq), p.xo, p.wo,
                              static_cast<void const*>(p.sw), p.bias, p.residual, static_cast<void const*>(p.y)}) {
    if (!is_aligned(pointer, kAlignment)) return false;
  }
  return element_size(p.dtype) == 2 && p.k % 16 == 0 && p.n % 8 == 0 && p.m <= kMaxRows && p.n <= kMaxRows &&
         sm90_blocks_fit(p.m, p.n);
}

/// Enqueue y by one of the wgmma kernels. `p` must be supported, and have passed the checks of launch_linear.
template <class T>
Status launch_linear_sm90(LinearParams const& p, Sm90Kernel kernel, int multiprocessors, cudaStream_t stream);

}  // namespace graphopt::mixq
