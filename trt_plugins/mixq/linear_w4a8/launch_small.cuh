// Launch of the kernel for few tokens, for X of 8 and of 4 bits.
#pragma once

#include <algorithm>

#include "common/launch.h"
#include "mixq/linear/policy.h"
#include "mixq/linear_w4a8/kernel_small.cuh"
#include "mixq/linear_w4a8/params.h"

namespace graphopt::mixq {

/// A grid of `x` blocks by `y`, which the second dimension may not hold.
template <class Kernel, class Args>
Status launch_grid(Kernel kernel, int64_t x, int64_t y, int threads, size_t shared_bytes, cudaStream_t stream,
                   Args const& args, Start start = Start::kInOrder) {
  constexpr int64_t kMaxGridY = 65535;
  if (y > kMaxGridY) return Status::kTooLarge;
  dim3 const grid(static_cast<unsigned>(x), static_cast<unsigned>(y));
  return launch_at(start, kernel, grid, dim3(static_cast<unsigned>(threads)), shared_bytes, stream, args);
}

template <int kXBits, class Shape, class T>
Status launch_w4a8_small(LinearW4A8Args<T> const& args, cudaStream_t stream) {
  return launch_grid(linear_w4a8_small<T, Shape, kXBits>, ceil_div<int64_t>(args.n, 16 * Shape::kRowTiles),
                     ceil_div<int64_t>(args.m, 8 * Shape::kTokenTiles), SmallW4A8<T, Shape, kXBits>::kThreads, 0,
                     stream, args, Start::kEarly);
}

template <class T>
LinearW4A8Args<T> w4a8_args(LinearW4A8Params const& p) {
  return {p.m,
          p.n,
          static_cast<int32_t>(p.k),
          static_cast<int32_t>(p.capacity),
          static_cast<int32_t>(packed_bytes(p.k)),
          static_cast<int32_t>(p.group < p.k ? p.group : p.k),
          w4a8_group_shift(p.group, p.k),
          p.xq,
          p.sx,
          static_cast<T const*>(p.xo),
          p.wq4,
          reinterpret_cast<uint8_t const*>(p.sg),
          p.sw,
          static_cast<T const*>(p.wo),
          static_cast<T const*>(p.bias),
          static_cast<T const*>(p.residual),
          static_cast<T*>(p.y),
          static_cast<int32_t>(std::min(packed_bytes(p.k), kFewTokensPrefetchBytes / p.n / 16 * 16))};
}

}  // namespace graphopt::mixq
