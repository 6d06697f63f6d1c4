// Launch of a chosen kernel for one element type. Each launch_<type>.cu instantiates it, so that the types compile in
// parallel.
#pragma once

#include "common/launch.h"
#include "mixq/linear_w4a4/kernel_tile.cuh"
#include "mixq/linear_w4a8/launch_small.cuh"

namespace graphopt::mixq {

template <class Tile, class T>
Status launch_w4a4_tile(LinearW4A8Args<T> const& args, cudaStream_t stream) {
  using Traits = W4A4TileTraits<T, Tile>;
  // Blocks in flight together differ in M first: they share rows of W in L2.
  return launch_grid(linear_w4a4_tile<T, Tile>, ceil_div<int64_t>(args.m, Tile::kRowsM),
                     ceil_div<int64_t>(args.n, Tile::kRowsN), Traits::kThreads, Traits::kSharedBytes, stream, args);
}

template <class T>
Status launch_linear_w4a4_typed(LinearW4A8Params const& p, LinearW4A4Kernel kernel, cudaStream_t stream) {
  LinearW4A8Args<T> const args = w4a8_args<T>(p);
  switch (kernel) {
    case LinearW4A4Kernel::kUnpack:
      break;
    case LinearW4A4Kernel::kSmall8:
      return launch_w4a8_small<4, Small8>(args, stream);
    case LinearW4A4Kernel::kSmall16:
      return launch_w4a8_small<4, Small16>(args, stream);
    case LinearW4A4Kernel::kSmall32:
      return launch_w4a8_small<4, Small32>(args, stream);
    case LinearW4A4Kernel::kTile64x64:
      return launch_w4a4_tile<W4A4Tile64x64>(args, stream);
    case LinearW4A4Kernel::kTile128x128:
      return launch_w4a4_tile<W4A4Tile128x128>(args, stream);
  }
  return Status::kBadOperation;
}

}  // namespace graphopt::mixq
