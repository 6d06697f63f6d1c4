// Launch of a chosen kernel for one element type. Each launch_<type>.cu instantiates it, so that the types compile in
// parallel.
#pragma once

#include <algorithm>

#include "common/launch.h"
#include "mixq/linear/kernel_generic.cuh"
#include "mixq/linear/kernel_small.cuh"
#include "mixq/linear/kernel_tile.cuh"
#include "mixq/linear/params.h"
#include "mixq/linear/policy.h"

namespace graphopt::mixq {

constexpr int64_t kMaxGridY = 65535;

template <class T, class Tile>
Status launch_tile(LinearArgs<T> const& args, cudaStream_t stream) {
  using Traits = TileTraits<T, Tile>;
  int64_t const across = ceil_div<int64_t>(args.n, Tile::kRowsN);
  if (across > kMaxGridY) return Status::kTooLarge;
  // Blocks in flight together differ in M first: they share rows of W in L2.
  dim3 const grid(static_cast<unsigned>(ceil_div<int64_t>(args.m, Tile::kRowsM)), static_cast<unsigned>(across));
  return launch(linear_tile<T, Tile>, grid, dim3(Traits::kThreads), Traits::kSharedBytes, stream, args);
}

template <class T>
Status launch_small(LinearArgs<T> const& args, cudaStream_t stream) {
  dim3 const grid(static_cast<unsigned>(ceil_div<int64_t>(args.n, kSmallColumns)));
  dim3 const block(SmallKernel<T, true>::kThreads);
  auto const kernel = args.m > 8 ? linear_small<T, true> : linear_small<T, false>;
  return launch_at(Start::kEarly, kernel, grid, block, 0, stream, args);
}

template <class T>
Status launch_generic(LinearArgs<T> const& args, cudaStream_t stream) {
  int64_t const across = ceil_div<int64_t>(args.n, kGenericTile);
  if (across > kMaxGridY) return Status::kTooLarge;
  dim3 const grid(static_cast<unsigned>(ceil_div<int64_t>(args.m, kGenericTile)), static_cast<unsigned>(across));
  return launch(linear_generic<T>, grid, dim3(kGenericThreads), 0, stream, args);
}

template <class T>
LinearArgs<T> linear_args(LinearParams const& p) {
  return {p.m,
          p.n,
          static_cast<int32_t>(p.k),
          static_cast<int32_t>(p.capacity),
          p.xq,
          p.sx,
          static_cast<T const*>(p.xo),
          p.wq,
          p.sw,
          static_cast<T const*>(p.wo),
          static_cast<T const*>(p.bias),
          static_cast<T const*>(p.residual),
          static_cast<T*>(p.y),
          static_cast<int32_t>(std::min(p.k, kFewTokensPrefetchBytes / p.n) / 16 * 16)};
}

template <class T>
Status launch_linear_typed(LinearParams const& p, LinearKernel kernel, cudaStream_t stream) {
  LinearArgs<T> const args = linear_args<T>(p);
  switch (kernel) {
    case LinearKernel::kGeneric:
      return launch_generic(args, stream);
    case LinearKernel::kSmallM:
      return launch_small(args, stream);
    case LinearKernel::kTile256x128:
      return launch_tile<T, Tile256x128>(args, stream);
    case LinearKernel::kTile128x128:
      return launch_tile<T, Tile128x128>(args, stream);
    case LinearKernel::kTile64x64:
      return launch_tile<T, Tile64x64>(args, stream);
  }
  return Status::kBadOperation;
}

}  // namespace graphopt::mixq
