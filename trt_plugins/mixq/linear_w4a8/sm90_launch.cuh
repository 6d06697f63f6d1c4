// Launch of the Hopper w4a8 kernel for one type. sm90_<type>.cu instantiate it: the types compile in parallel.
#pragma once

#include <algorithm>
#include <cmath>

#include "common/tensor_map.h"
#include "mixq/linear/sm90_launch.cuh"
#include "mixq/linear_w4a8/policy.h"
#include "mixq/linear_w4a8/sm90.h"
#include "mixq/linear_w4a8/sm90_kernel.cuh"

namespace graphopt::mixq {

/// Tiles of tokens walked before the next rows of W: those that balance what blocks in flight read of X and of W.
template <class Tile>
int w4_group(int down, int blocks_in_flight) {
  double const w_bytes = Tile::kRows * 0.5, x_bytes = Tile::kTokens;  // for each column
  return std::clamp(static_cast<int>(std::lround(std::sqrt(blocks_in_flight * w_bytes / x_bytes))), 1, down);
}

template <class T, class Tile>
Status launch_sm90_w4_tile(LinearW4A8Params const& p, int multiprocessors, cudaStream_t stream) {
  using Traits = Sm90W4Traits<T, Tile>;
  Sm90W4Args<T> args;
  // A box that reaches past the last token costs more than tokens that exist.
  args.x_rows = static_cast<int32_t>(std::min<int64_t>(p.m, Tile::kTokens));
  int64_t const row_bytes = packed_bytes(p.k);
  GRAPHOPT_TRY(encode_tensor_map(&args.xq, p.xq, DType::kInt8, p.m, p.k, args.x_rows));
  GRAPHOPT_TRY(encode_tensor_map(&args.wq, p.wq4, DType::kInt8, p.n, row_bytes, Tile::kRows, kCodeRowBytes));
  GRAPHOPT_TRY(encode_tensor_map(&args.xo, p.xo, p.dtype, p.m, p.capacity, args.x_rows, kCodeRowBytes));
  GRAPHOPT_TRY(encode_tensor_map(&args.wo, p.wo, p.dtype, p.n, p.capacity, Tile::kRows, kCodeRowBytes));
  GRAPHOPT_TRY(encode_tensor_map(&args.y, p.y, p.dtype, p.m, p.n, Traits::kStoreTokens));
  args.residual_bytes = 0;
  if (p.residual != nullptr) {
    int const tokens = static_cast<int>(std::min<int64_t>(p.m, Traits::kStoreTokens));
    GRAPHOPT_TRY(encode_tensor_map(&args.residual, p.residual, p.dtype, p.m, p.n, tokens));
    args.residual_bytes = static_cast<uint32_t>(tokens * 128);
  }
  args.sx = p.sx;
  args.sg = reinterpret_cast<uint8_t const*>(p.sg);
  args.sw = p.sw;
  args.bias = static_cast<T const*>(p.bias);
  args.m = static_cast<int32_t>(p.m);
  args.n = static_cast<int32_t>(p.n);
  args.code_stages = static_cast<int32_t>(ceil_div<int64_t>(p.k, kStageColumns));
  args.outlier_stages = static_cast<int32_t>(ceil_div<int64_t>(p.capacity, Traits::kStageOutliers));
  args.group_shift = w4a8_group_shift(p.group, p.k);
  args.last_group = static_cast<int32_t>((p.k - 1) >> args.group_shift);
  args.grid.down = static_cast<int32_t>(ceil_div<int64_t>(p.m, Tile::kTokens));
  args.grid.across = static_cast<int32_t>(ceil_div<int64_t>(p.n, Tile::kRows));
  int const at_once = multiprocessors / Tile::kSplit;
  args.grid.group = w4_group<Tile>(args.grid.down, at_once);
  // Blocks that split K exchange their sums once, so each has one tile.
  int const clusters = Tile::kSplit > 1 ? args.grid.clusters() : std::min(at_once, args.grid.clusters());
  int64_t const bytes_per_block = kPrefetchBytes / (int64_t{clusters} * Tile::kSplit);
  args.prefetched = static_cast<int32_t>(bytes_per_block / Traits::kWBytes);
  return launch_clusters(linear_w4a8_sm90<T, Tile>, args, clusters * Tile::kSplit, Traits::kThreads,
                         Traits::kSharedBytes, Tile::kSplit, stream,
                         p.m <= kEarlyTokens ? Start::kEarly : Start::kInOrder);
}

template <class T>
Status launch_linear_w4a8_sm90(LinearW4A8Params const& p, Sm90W4Kernel kernel, int multiprocessors,
                               cudaStream_t stream) {
  switch (kernel) {
    case Sm90W4Kernel::kFewTokens:
      break;
    case Sm90W4Kernel::kTile64x64Split:
      return launch_sm90_w4_tile<T, Sm90W4Tile<64, 64, 2>>(p, multiprocessors, stream);
    case Sm90W4Kernel::kTile64x128:
      return launch_sm90_w4_tile<T, Sm90W4Tile<64, 128, 1>>(p, multiprocessors, stream);
    case Sm90W4Kernel::kTile64x128Split:
      return launch_sm90_w4_tile<T, Sm90W4Tile<64, 128, 2>>(p, multiprocessors, stream);
    case Sm90W4Kernel::kTile128x64:
      return launch_sm90_w4_tile<T, Sm90W4Tile<128, 64, 1>>(p, multiprocessors, stream);
    case Sm90W4Kernel::kTile128x64Split:
      return launch_sm90_w4_tile<T, Sm90W4Tile<128, 64, 2>>(p, multiprocessors, stream);
    case Sm90W4Kernel::kTile128x128:
      return launch_sm90_w4_tile<T, Sm90W4Tile<128, 128, 1>>(p, multiprocessors, stream);
    case Sm90W4Kernel::kTile128x128Split:
      return launch_sm90_w4_tile<T, Sm90W4Tile<128, 128, 2>>(p, multiprocessors, stream);
    case Sm90W4Kernel::kTile256x128:
      return launch_sm90_w4_tile<T, Sm90W4Tile<256, 128, 1>>(p, multiprocessors, stream);
  }
  return Status::kBadOperation;
}

}  // namespace graphopt::mixq
