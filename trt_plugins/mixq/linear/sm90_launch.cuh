// Launch of the Hopper linear kernel for one type. sm90_<type>.cu instantiate it: the types compile in parallel.
#pragma once

#include <algorithm>

#include "common/gemm/sm90_launch.cuh"
#include "mixq/linear/policy.h"
#include "mixq/linear/sm90.h"

namespace graphopt::mixq {

template <class T>
StageOrder<int8_t, T> stage_order(LinearParams const& p) {
  constexpr int64_t kOutliers = kStageRowBytes / int{sizeof(T)};
  return {static_cast<int32_t>(ceil_div<int64_t>(p.k, kStageRowBytes)),
          static_cast<int32_t>(ceil_div<int64_t>(p.capacity, kOutliers))};
}

/// Encode the products' operands in boxes of the rows that a block brings in; fill all but `y`, `residual`, `grid` and `early`.
template <class T>
Status encode_operands(LinearParams const& p, int x_rows, int w_rows, GemmArgs<int8_t, T>* args) {
  GRAPHOPT_TRY(encode_tensor_map(&args->x, p.xq, DType::kInt8, p.m, p.k, x_rows));
  GRAPHOPT_TRY(encode_tensor_map(&args->w, p.wq, DType::kInt8, p.n, p.k, w_rows));
  GRAPHOPT_TRY(encode_tensor_map(&args->xo, p.xo, p.dtype, p.m, p.capacity, x_rows));
  GRAPHOPT_TRY(encode_tensor_map(&args->wo, p.wo, p.dtype, p.n, p.capacity, w_rows));
  args->sx = p.sx;
  args->sw = p.sw;
  args->bias = static_cast<T const*>(p.bias);
  args->m = static_cast<int32_t>(p.m);
  args->n = static_cast<int32_t>(p.n);
  args->x_rows = x_rows;
  args->order = stage_order<T>(p);
  return Status::kOk;
}

/// Above, a launch is a hundredth of the time, and blocks that wait hold shared memory that their predecessor may want.
constexpr int64_t kEarlyTokens = 1024;

template <class T, class Tile>
Status launch_sm90_tile(LinearParams const& p, int multiprocessors, cudaStream_t stream) {
  using Traits = GemmTraits<int8_t, T, Tile, /*kOutliers=*/true>;
  GemmArgs<int8_t, T> args;
  int const x_rows = static_cast<int>(std::min<int64_t>(p.m, Tile::kRowsM));
  GRAPHOPT_TRY(encode_operands<T>(p, x_rows, Tile::kRowsN / Tile::kCluster, &args));
  GRAPHOPT_TRY(encode_tensor_map(&args.y, p.y, p.dtype, p.m, p.n, Traits::kWgmmaRowsM));
  args.residual_bytes = 0;
  if (p.residual != nullptr) {
    // A box that reaches past the last token costs more than tokens that exist.
    int const rows = static_cast<int>(std::min<int64_t>(p.m, Traits::kWgmmaRowsM));
    GRAPHOPT_TRY(encode_tensor_map(&args.residual, p.residual, p.dtype, p.m, p.n, rows));
    args.residual_bytes = static_cast<uint32_t>(rows * kStageRowBytes);
  }
  args.grid = gemm_grid<Tile>(p.m, p.n, multiprocessors);
  int const clusters = std::min(multiprocessors / Tile::kCluster, args.grid.clusters());
  int64_t const early = kPrefetchBytes / (int64_t{clusters} * Traits::kWBytes);
  args.early = static_cast<int32_t>(std::min({early, int64_t{args.order.main_tiles}, int64_t{Traits::kStages}}));
  return launch_gemm_tiles<Traits>(args, multiprocessors, stream,
                                   p.m <= kEarlyTokens ? Start::kEarly : Start::kInOrder);
}

template <class T>
Status launch_linear_sm90(LinearParams const& p, Sm90Kernel kernel, int multiprocessors, cudaStream_t stream) {
  switch (kernel) {
    case Sm90Kernel::kSmallM:
      break;
    case Sm90Kernel::kTile128x64:
      return launch_sm90_tile<T, GemmTile<128, 64, 1>>(p, multiprocessors, stream);
    case Sm90Kernel::kTile128x128:
      return launch_sm90_tile<T, GemmTile<128, 128, 1>>(p, multiprocessors, stream);
    case Sm90Kernel::kTile128x256x2:
      return launch_sm90_tile<T, GemmTile<128, 256, 2>>(p, multiprocessors, stream);
  }
  return Status::kBadOperation;
}

}  // namespace graphopt::mixq
