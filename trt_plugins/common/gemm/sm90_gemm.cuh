// Launch of the Hopper matrix product without outliers for one pair of types. sm90_<operands>_<T>.cu instantiate it: they
// compile in parallel.
#pragma once

#include <algorithm>

#include "common/gemm/gemm.h"
#include "common/gemm/sm90_launch.cuh"

namespace graphopt {

template <class X, class T, class Tile>
Status launch_gemm_tile(GemmParams const& p, int multiprocessors, cudaStream_t stream) {
  using Traits = GemmTraits<X, T, Tile, /*kOutliers=*/false>;
  GemmArgs<X, T> args{};
  args.x_rows = static_cast<int32_t>(std::min<int64_t>(p.m, Tile::kRowsM));
  GRAPHOPT_TRY(encode_tensor_map(&args.x, p.x, p.operands, p.m, p.k, args.x_rows));
  GRAPHOPT_TRY(encode_tensor_map(&args.w, p.w, p.operands, p.n, p.k, Tile::kRowsN / Tile::kCluster));
  GRAPHOPT_TRY(encode_tensor_map(&args.y, p.y, p.dtype, p.m, p.n, Traits::kWgmmaRowsM, kTensorMapRowBytes, p.y_stride));
  args.sx = p.sx;
  args.sw = p.sw;
  args.bias = static_cast<T const*>(p.bias);
  args.m = static_cast<int32_t>(p.m);
  args.n = static_cast<int32_t>(p.n);
  args.order.main_tiles = static_cast<int32_t>(gemm_stages(p.k, sizeof(X)));
  args.grid = gemm_grid<Tile>(p.m, p.n, multiprocessors);
  return launch_gemm_tiles<Traits>(args, multiprocessors, stream, Start::kEarly);
}

template <class X, class T>
Status launch_gemm_typed(GemmParams const& p, int multiprocessors, cudaStream_t stream) {
  auto const launch = gemm_small_tile(p.m, p.n, p.k, sizeof(X), multiprocessors)
                          ? launch_gemm_tile<X, T, GemmTile<128, 128, 1>>
                          : launch_gemm_tile<X, T, GemmTile<128, 256, 2>>;
  return launch(p, multiprocessors, stream);
}

}  // namespace graphopt
