// Launch of the Hopper matrix product.
#pragma once

#include <algorithm>
#include <cmath>

#include "common/gemm/sm90_kernel.cuh"
#include "common/launch.h"
#include "common/tensor_map.h"

namespace graphopt {

/// Clusters of tiles walked down before across: the side of the square that the tiles in flight can form.
template <class Tile>
int square_group(int down, int clusters_in_flight) {
  double const area = static_cast<double>(clusters_in_flight) * Tile::kRowsN;
  int const side = static_cast<int>(std::lround(std::sqrt(area / (Tile::kRowsM * Tile::kCluster))));
  return std::clamp(side, 1, down);
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

/// Tiles of Y [m, n] in the order in which as many as the device holds at once are walked.
template <class Tile>
Sm90Grid gemm_grid(int64_t m, int64_t n, int multiprocessors) {
  Sm90Grid grid;
  grid.down = static_cast<int32_t>(ceil_div<int64_t>(m, Tile::kRowsM * Tile::kCluster));
  grid.across = static_cast<int32_t>(ceil_div<int64_t>(n, Tile::kRowsN));
  grid.group = square_group<Tile>(grid.down, multiprocessors / Tile::kCluster);
  return grid;
}

/// Launch the kernel of `Traits` on the clusters that the device holds at once.
template <class Traits>
Status launch_gemm_tiles(GemmArgs<typename Traits::X, typename Traits::T> const& args, int multiprocessors,
                         cudaStream_t stream, Start start) {
  using Tile = typename Traits::Tile;
  int const clusters = std::min(multiprocessors / Tile::kCluster, args.grid.clusters());
  return launch_clusters(gemm_sm90<Traits>, args, clusters * Tile::kCluster, Traits::kThreads, Traits::kSharedBytes,
                         Tile::kCluster, stream, start);
}

}  // namespace graphopt
