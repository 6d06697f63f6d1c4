// Launch of a chosen kernel for one element type. Each launch_<type>.cu instantiates it, so that the types compile in
// parallel.
#pragma once

#include <type_traits>

#include "common/launch.h"
#include "mixq/linear_w4a8/kernel_generic.cuh"
#include "mixq/linear_w4a8/kernel_small.cuh"
#include "mixq/linear_w4a8/kernel_tile.cuh"
#include "mixq/linear_w4a8/params.h"
#include "mixq/linear_w4a8/policy.h"

namespace graphopt::mixq {

/// A grid of `x` blocks by `y`, which the second dimension may not hold.
template <class Kernel, class Args>
Status launch_grid(Kernel kernel, int64_t x, int64_t y, int threads, size_t shared_bytes, cudaStream_t stream,
                   Args const& args) {
  constexpr int64_t kMaxGridY = 65535;
  if (y > kMaxGridY) return Status::kTooLarge;
  dim3 const grid(static_cast<unsigned>(x), static_cast<unsigned>(y));
  return launch(kernel, grid, dim3(static_cast<unsigned>(threads)), shared_bytes, stream, args);
}

template <class T, class Shape>
Status launch_w4a8_small(LinearW4A8Args<T> const& args, cudaStream_t stream) {
  return launch_grid(linear_w4a8_small<T, Shape>, ceil_div<int64_t>(args.n, 16 * Shape::kRowTiles),
                     ceil_div<int64_t>(args.m, 8 * Shape::kTokenTiles), SmallW4A8<T, Shape>::kThreads, 0, stream, args);
}

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
LinearW4A8Args<T> w4a8_args(LinearW4A8Params const& p) {
  return {p.m,
          p.n,
          static_cast<int32_t>(p.k),
          static_cast<int32_t>(p.capacity),
          static_cast<int32_t>(packed_row_bytes(p.k)),
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
          static_cast<T*>(p.y)};
}

template <class T>
Status launch_linear_w4a8_typed(LinearW4A8Params const& p, LinearW4A8Kernel kernel, cudaStream_t stream) {
  LinearW4A8Args<T> const args = w4a8_args<T>(p);
  switch (kernel) {
    case LinearW4A8Kernel::kGeneric:
      return launch_w4a8_generic(args, stream);
    case LinearW4A8Kernel::kSmall8:
      return launch_w4a8_small<T, Small8>(args, stream);
    case LinearW4A8Kernel::kSmall16:
      return launch_w4a8_small<T, Small16>(args, stream);
    case LinearW4A8Kernel::kSmall32:
      return launch_w4a8_small<T, Small32>(args, stream);
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
