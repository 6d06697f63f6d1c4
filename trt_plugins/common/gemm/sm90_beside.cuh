// The Hopper matrix product with other work beside it, that of two warps of each block which would be idle.
//
// Beside has
//   Args                                what it works on
//   run(args, memory, worker, workers)  its part of a warp, which has 512 bytes of shared memory of its own
#pragma once

#include "common/gemm/sm90_gemm.cuh"

namespace graphopt {

template <class Traits, class Beside>
struct GemmBesideArgs {
  GemmArgs<typename Traits::X, typename Traits::T> product;
  typename Beside::Args beside;
};

template <class Traits, class Beside>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    gemm_beside_sm90(__grid_constant__ GemmBesideArgs<Traits, Beside> const args) {
  constexpr int kWarps = 2, kBytes = 512;
  extern __shared__ __align__(1024) uint8_t memory[];
  run_gemm<Traits>(args.product, memory, [&](int warp) {
    Beside::run(args.beside, memory + Traits::kBesideOffset + warp * kBytes,
                static_cast<int>(blockIdx.x) * kWarps + warp, static_cast<int>(gridDim.x) * kWarps);
  });
}

/// As launch_gemm, in tiles of 128x256.
template <class X, class T, class Beside>
Status launch_gemm_beside(GemmParams const& p, typename Beside::Args const& beside, int multiprocessors,
                          cudaStream_t stream) {
  using Tile = GemmTile<128, 256, 2>;
  using Traits = GemmTraits<X, T, Tile, /*kOutliers=*/false, /*kBeside=*/true>;
  GemmBesideArgs<Traits, Beside> args{};
  GRAPHOPT_TRY(encode_gemm<Traits>(p, multiprocessors, &args.product));
  args.beside = beside;
  int const clusters = std::min(multiprocessors / Tile::kCluster, args.product.grid.clusters());
  return launch_clusters(gemm_beside_sm90<Traits, Beside>, args, clusters * Tile::kCluster, Traits::kThreads,
                         Traits::kSharedBytes, Tile::kCluster, stream, Start::kEarly);
}

}  // namespace graphopt
