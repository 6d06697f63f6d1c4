// Tensor-core kernel for M > 16: cp.async stages, ldmatrix, mma.sync. Between the int8 product and that of the outliers,
// the int32 sums become float32 in place, times sx sw.
#pragma once

#include "mixq/common/tile_epilogue.cuh"
#include "mixq/common/tile_stages.cuh"
#include "mixq/linear/kernel_common.cuh"
#include "mixq/linear/policy.h"

namespace graphopt::mixq {

template <class T, class Tile>
struct TileTraits : TileLayout<Tile> {
  using Layout = TileLayout<Tile>;
  using Epilogue = TileEpilogue<T, Tile, LinearArgs<T>>;
  static_assert(Epilogue::kWarpScratch * Layout::kWarpsM * Layout::kWarpsN <= Layout::kSharedBytes,
                "the epilogue reuses the stages");
};

template <class T, class Tile>
__global__ void __launch_bounds__(TileTraits<T, Tile>::kThreads) linear_tile(LinearArgs<T> const args) {
  using Traits = TileTraits<T, Tile>;
  extern __shared__ __align__(128) char shared[];
  TileStages<Tile> stages(shared, {args.xq, args.wq, args.k},
                          {args.xo, args.wo, args.capacity * static_cast<int>(sizeof(T))}, args.m, args.n);
  stages.start();
  int32_t sums[Traits::kBlocksM][Traits::kBlocksN][4] = {};
  for (int tile = 0; tile < stages.code_tiles(); ++tile) {
    stages.multiply(tile, [&](int, int i, int j, uint32_t const(&a)[4], uint32_t b0, uint32_t b1) {
      mma_s8(sums[i][j], a, b0, b1);
    });
  }
  typename Traits::Epilogue const epilogue(args, stages.first_token(), stages.first_row(), stages.lane());
  float values[Traits::kBlocksM][Traits::kBlocksN][4];
  epilogue.scale(sums, values);
  for (int tile = stages.code_tiles(); tile < stages.tiles(); ++tile) {
    stages.multiply(tile, [&](int, int i, int j, uint32_t const(&a)[4], uint32_t b0, uint32_t b1) {
      mma_outliers<T>(values[i][j], a, b0, b1);
    });
  }
  stages.finish();
  epilogue.write(values, shared + static_cast<int>(threadIdx.x) / 32 * Traits::Epilogue::kWarpScratch);
}

}  // namespace graphopt::mixq
