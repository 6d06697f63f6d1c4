// Launch of one tile of the Hopper linear kernel for one type.
#pragma once

#include <algorithm>
#include <cmath>

#include "common/launch.h"
#include "common/tensor_map.h"
#include "mixq/linear/params.h"
#include "mixq/linear/sm90_kernel.cuh"

namespace graphopt::mixq {

/// Clusters of tiles walked down before across: the side of the square that the tiles in flight can form.
template <class Tile>
int square_group(int down, int across, int clusters_in_flight) {
  double const area = static_cast<double>(clusters_in_flight) * Tile::kRowsN * Tile::kClusterN;
  int const side = static_cast<int>(std::lround(std::sqrt(area / (Tile::kRowsM * Tile::kClusterM))));
  return std::clamp(side, 1, down);
}

/// The kernel's view of `p`: its operands encoded for the copy engine, and the walk over Y.
template <class T, class Tile>
Status make_sm90_args(LinearParams const& p, int multiprocessors, Sm90Args<T>* args) {
  using Traits = Sm90Traits<T, Tile>;
  constexpr int kXPart = Tile::kRowsM / Tile::kClusterN;
  constexpr int kWPart = Tile::kRowsN / Tile::kClusterM;
  GRAPHOPT_TRY(encode_tensor_map(&args->xq, p.xq, DType::kInt8, p.m, p.k, kXPart));
  GRAPHOPT_TRY(encode_tensor_map(&args->wq, p.wq, DType::kInt8, p.n, p.k, kWPart));
  GRAPHOPT_TRY(encode_tensor_map(&args->xo, p.xo, p.dtype, p.m, p.capacity, kXPart));
  GRAPHOPT_TRY(encode_tensor_map(&args->wo, p.wo, p.dtype, p.n, p.capacity, kWPart));
  GRAPHOPT_TRY(encode_tensor_map(&args->y, p.y, p.dtype, p.m, p.n, Traits::kWgmmaRowsM));
  args->sx = p.sx;
  args->sw = p.sw;
  args->bias = static_cast<T const*>(p.bias);
  args->m = static_cast<int32_t>(p.m);
  args->n = static_cast<int32_t>(p.n);
  args->code_tiles = static_cast<int32_t>(ceil_div<int64_t>(p.k, Traits::kRowBytes));
  args->outlier_tiles = static_cast<int32_t>(ceil_div<int64_t>(p.capacity, Traits::kStoreCols));
  args->grid.down = static_cast<int32_t>(ceil_div<int64_t>(p.m, Tile::kRowsM * Tile::kClusterM));
  args->grid.across = static_cast<int32_t>(ceil_div<int64_t>(p.n, Tile::kRowsN * Tile::kClusterN));
  args->grid.group = square_group<Tile>(args->grid.down, args->grid.across, multiprocessors / Tile::kCluster);
  return Status::kOk;
}

template <class T, class Tile>
Status launch_sm90_kernel(Sm90Args<T> const& args, int multiprocessors, cudaStream_t stream) {
  using Traits = Sm90Traits<T, Tile>;
  GRAPHOPT_CUDA_TRY(cudaFuncSetAttribute(linear_sm90<T, Tile>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         Traits::kSharedBytes));
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {Tile::kCluster, 1, 1};
  cudaLaunchConfig_t config{};
  int const clusters = std::min(multiprocessors / Tile::kCluster, args.grid.clusters());
  config.gridDim = dim3(static_cast<unsigned>(clusters * Tile::kCluster));
  config.blockDim = dim3(Traits::kThreads);
  config.dynamicSmemBytes = Traits::kSharedBytes;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = Tile::kCluster > 1 ? 1 : 0;
  return cuda_status(cudaLaunchKernelEx(&config, linear_sm90<T, Tile>, args));
}

/// See supports_sm90 in sm90.h for what `p` must satisfy.
template <class T, class Tile>
Status launch_sm90(LinearParams const& p, int multiprocessors, cudaStream_t stream) {
  Sm90Args<T> args;
  GRAPHOPT_TRY((make_sm90_args<T, Tile>(p, multiprocessors, &args)));
  return launch_sm90_kernel<T, Tile>(args, multiprocessors, stream);
}

}  // namespace graphopt::mixq
