// Launch of a chosen kernel for one element type. Each launch_<type>.cu instantiates it, so that the types compile in
// parallel.
#pragma once

#include <type_traits>

#include "common/launch.h"
#include "mixq/linear_w4a8/kernel_generic.cuh"
#include "mixq/linear_w4a8/kernel_tile.cuh"
#include "mixq/linear_w4a8/launch_small.cuh"
#include "mixq/linear_w4a8/params.h"
#include "mixq/linear_w4a8/policy.h"

namespace graphopt::mixq {

/// float32 outliers are split in two for TF32, which leaves no registers for 128 sums.
template <class T, class Tile>
using TileOf = std::conditional_t<sizeof(T) == 4 && Tile::kWarpN == 64, W4Tile128x128Narrow, Tile>;

template <class T, class Tile>
Status launch_w4a8_tile(LinearW4A8Args<T> const& args, cudaStream_t stream) {
  using Traits = W4TileTraits<T, Tile>;
  // Blocks in flight together differ in M first: they share rows of W in L2.
  return launch_grid(linear_w4a8_tile<T, Tile>, ceil_div<int64_t>(args.m, Tile::kRowsM),
                     ceil_div<int64_t>(args.n, Tile::kRowsN), Traits::kThreads, Traits::kSharedBytes, stream, args);
}

template <class T>
Status launch_w4a8_generic(LinearW4A8Args<T> const& args, cudaStream_t stream) {
  return launch_grid(linear_w4a8_generic<T>, ceil_div<int64_t>(args.m, kGenericW4Tile),
                     ceil_div<int64_t>(args.n, kGenericW4Tile), kGenericW4Threads, 0, stream, args);
}

template <class T>
Status launch_linear_w4a8_typed(LinearW4A8Params const& p, LinearW4A8Kernel kernel, cudaStream_t stream) {
  LinearW4A8Args<T> const args = w4a8_args<T>(p);
  switch (kernel) {
    case LinearW4A8Kernel::kGeneric:
      return launch_w4a8_generic(args, stream);
    case LinearW4A8Kernel::kSmall8:
      return launch_w4a8_small<8, Small8>(args, stream);
    case LinearW4A8Kernel::kSmall16:
      return launch_w4a8_small<8, Small16>(args, stream);
    case LinearW4A8Kernel::kSmall32:
      return launch_w4a8_small<8, Small32>(args, stream);
    case LinearW4A8Kernel::kTile64x64:
      return launch_w4a8_tile<T, TileOf<T, W4Tile64x64>>(args, stream);
    case LinearW4A8Kernel::kTile128x128:
      return launch_w4a8_tile<T, TileOf<T, W4Tile128x128>>(args, stream);
    case LinearW4A8Kernel::kTile256x128:
      return launch_w4a8_tile<T, TileOf<T, W4Tile256x128>>(args, stream);
  }
  return Status::kBadOperation;
}

}  // namespace graphopt::mixq
