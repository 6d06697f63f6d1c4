// Launch of the Hopper linear kernel for one type. sm90_<type>.cu instantiate it: the types compile in parallel.
#pragma once

#include <algorithm>
#include <cmath>

#include "common/launch.h"
#include "common/tensor_map.h"
#include "mixq/linear/policy.h"
#include "mixq/linear/sm90.h"
#include "mixq/linear/sm90_kernel.cuh"

namespace graphopt::mixq {

/// Clusters of tiles walked down before across: the side of the square that the tiles in flight can form.
template <class Tile>
int square_group(int down, int clusters_in_flight) {
  double const area = static_cast<double>(clusters_in_flight) * Tile::kRowsN;
  int const side = static_cast<int>(std::lround(std::sqrt(area / (Tile::kRowsM * Tile::kCluster))));
  return std::clamp(side, 1, down);
}

template <class T>
StageOrder<T> stage_order(LinearParams const& p) {
  constexpr int64_t kOutliers = kStageRowBytes / int{sizeof(T)};
  return {static_cast<int32_t>(ceil_div<int64_t>(p.k, kStageRowBytes)),
          static_cast<int32_t>(ceil_div<int64_t>(p.capacity, kOutliers))};
}

/// Encode the products' operands in boxes of the rows that a block brings in; fill all but `y`, `residual`, `grid` and `early`.
template <class T>
Status encode_operands(LinearParams const& p, int x_rows, int w_rows, Sm90Args<T>* args) {
  GRAPHOPT_TRY(encode_tensor_map(&args->xq, p.xq, DType::kInt8, p.m, p.k, x_rows));
  GRAPHOPT_TRY(encode_tensor_map(&args->wq, p.wq, DType::kInt8, p.n, p.k, w_rows));
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

/// Launch `kernel`, of Hopper only, on `blocks` blocks in clusters of `cluster`.
template <class Args>
Status launch_clusters(void (*kernel)(Args), Args const& args, int blocks, int threads, int shared_bytes, int cluster,
                       cudaStream_t stream, Start start = Start::kInOrder) {
  GRAPHOPT_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = start == Start::kEarly ? 1 : 0;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 2 : 1;
  return cuda_status(cudaLaunchKernelEx(&config, kernel, args));
}

/// Above, a launch is a hundredth of the time, and blocks that wait hold shared memory that their predecessor may want.
constexpr int64_t kEarlyTokens = 1024;

template <class T, class Tile>
Status launch_sm90_tile(LinearParams const& p, int multiprocessors, cudaStream_t stream) {
  using Traits = Sm90Traits<T, Tile>;
  Sm90Args<T> args;
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
  args.grid.down = static_cast<int32_t>(ceil_div<int64_t>(p.m, Tile::kRowsM * Tile::kCluster));
  args.grid.across = static_cast<int32_t>(ceil_div<int64_t>(p.n, Tile::kRowsN));
  args.grid.group = square_group<Tile>(args.grid.down, multiprocessors / Tile::kCluster);
  int const clusters = std::min(multiprocessors / Tile::kCluster, args.grid.clusters());
  int64_t const early = kPrefetchBytes / (int64_t{clusters} * Traits::kWBytes);
  args.early = static_cast<int32_t>(std::min({early, int64_t{args.order.code_tiles}, int64_t{Traits::kStages}}));
  return launch_clusters(linear_sm90<T, Tile>, args, clusters * Tile::kCluster, Traits::kThreads, Traits::kSharedBytes,
                         Tile::kCluster, stream, p.m <= kEarlyTokens ? Start::kEarly : Start::kInOrder);
}

template <class T>
Status launch_linear_sm90(LinearParams const& p, Sm90Kernel kernel, int multiprocessors, cudaStream_t stream) {
  switch (kernel) {
    case Sm90Kernel::kSmallM:
      break;
    case Sm90Kernel::kTile128x64:
      return launch_sm90_tile<T, Sm90Tile<128, 64, 1>>(p, multiprocessors, stream);
    case Sm90Kernel::kTile128x128:
      return launch_sm90_tile<T, Sm90Tile<128, 128, 1>>(p, multiprocessors, stream);
    case Sm90Kernel::kTile128x256x2:
      return launch_sm90_tile<T, Sm90Tile<128, 256, 2>>(p, multiprocessors, stream);
  }
  return Status::kBadOperation;
}

}  // namespace graphopt::mixq
