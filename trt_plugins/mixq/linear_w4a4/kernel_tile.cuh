// Tensor-core kernel for packed codes of X and W: cp.async stages, ldmatrix, mma.sync of int4. Compute capability 8.x.
//
// An mma takes 64 codes, which lie in one group: its int32 sums are multiplied by the integer scales of its rows of W
// and added up. X and W are packed alike, so that the order of codes does not matter.
#pragma once

#include "mixq/common/tile_epilogue.cuh"
#include "mixq/common/tile_stages.cuh"
#include "mixq/linear_w4a4/policy.h"
#include "mixq/linear_w4a8/codes.cuh"

namespace graphopt::mixq {

template <class T, class Tile>
struct W4A4TileTraits : TileLayout<Tile> {
  using Layout = TileLayout<Tile>;
  using Epilogue = TileEpilogue<T, Tile, LinearW4A8Args<T>>;
  static_assert(Epilogue::kWarpScratch * Layout::kWarpsM * Layout::kWarpsN <= Layout::kSharedBytes,
                "the epilogue reuses the stages");
};

/// Integer scales of a warp's rows of W, for the columns of a stage.
template <class Layout>
struct StageScales {
  static constexpr int kStepColumns = 2 * kStepBytes;  // codes of an mma

  uint16_t pair[Layout::kSteps][Layout::kBlocksN];  // of rows 2 t and 2 t + 1 of every 8

  /// Load those of `tile`; 0 for rows outside W. `first`: the warp's first row.
  template <class T>
  __device__ __forceinline__ void load(LinearW4A8Args<T> const& args, int64_t first, int lane, int tile) {
    int const last = (args.k - 1) >> args.group_shift;
#pragma unroll
    for (int step = 0; step < Layout::kSteps; ++step) {
      int const group = (tile * Layout::kSteps + step) * kStepColumns >> args.group_shift;
      uint8_t const* scales = args.sg + int64_t{min(group, last)} * args.n;
#pragma unroll
      for (int j = 0; j < Layout::kBlocksN; ++j) {
        int64_t const n = first + j * 8 + lane % 4 * 2;
        pair[step][j] = n < args.n ? __ldg(reinterpret_cast<uint16_t const*>(scales + n)) : uint16_t{0};
      }
    }
  }
};

template <class T, class Tile>
__global__ void __launch_bounds__(W4A4TileTraits<T, Tile>::kThreads)
    linear_w4a4_tile([[maybe_unused]] LinearW4A8Args<T> const args) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 900  // later ones have no int4 tensor cores, and never get here
  using Traits = W4A4TileTraits<T, Tile>;
  extern __shared__ __align__(128) char shared[];
  TileStages<Tile> stages(shared, {args.xq, args.wq4, args.row_bytes},
                          {args.xo, args.wo, args.capacity * static_cast<int>(sizeof(T))}, args.m, args.n);
  stages.start();
  int32_t sums[Traits::kBlocksM][Traits::kBlocksN][4] = {};
  StageScales<TileLayout<Tile>> scales, next;
  next.load(args, stages.first_row(), stages.lane(), 0);
  for (int tile = 0; tile < stages.code_tiles(); ++tile) {
    scales = next;
    next.load(args, stages.first_row(), stages.lane(), tile + 1);
    stages.multiply(tile, [&](int step, int i, int j, uint32_t const(&a)[4], uint32_t b0, uint32_t b1) {
      int32_t part[4] = {};
      mma_s4(part, a, b0, b1);
      int32_t const scale[2] = {scales.pair[step][j] & 0xff, scales.pair[step][j] >> 8};
#pragma unroll
      for (int r = 0; r < 4; ++r) sums[i][j][r] += part[r] * scale[r % 2];
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
#endif
}

}  // namespace graphopt::mixq
