// Launch of the Hopper kernel.
#pragma once

#include <algorithm>
#include <cmath>

#include "common/launch.h"
#include "common/tensor_map.h"
#include "vq/linear/launch_split.h"
#include "vq/linear/params.h"
#include "vq/linear/sm90_kernel.cuh"

namespace graphopt::vq {

/// `split`: blocks that share K, 1 or 2.
template <class Traits>
Status launch_sm90(LinearParams const& p, int split, cudaStream_t stream) {
  int multiprocessors = 0;
  GRAPHOPT_TRY(multiprocessor_count(&multiprocessors));
  using T = typename Traits::T;
  Sm90Args<T> args;
  // A box that reaches past the last token costs more than tokens that exist.
  args.x_rows = static_cast<int32_t>(std::min<int64_t>(p.m, Traits::kTokens));
  GRAPHOPT_TRY(encode_tensor_map(&args.x, p.x, p.dtype, p.m, p.k, args.x_rows, Traits::kRowBytes));
  GRAPHOPT_TRY(encode_tensor_map(&args.y, p.y, p.dtype, p.m, p.n, Traits::kStoreTokens));
  args.codes = p.codes;
  args.codebooks = static_cast<__half const*>(p.codebooks);
  args.ratios = p.ratios;
  args.scale = p.scale;
  args.bias = static_cast<T const*>(p.bias);
  args.m = static_cast<int32_t>(p.m);
  args.n = static_cast<int32_t>(p.n);
  args.stages = static_cast<int32_t>(ceil_div<int64_t>(p.k, Traits::kColumns));
  args.row_bytes = static_cast<int32_t>(row_bytes(p.k, p.vector, p.bits, p.residuals));
  args.tile_rows = static_cast<int32_t>(std::min(p.tile_rows, p.n));
  args.tile_stages = static_cast<int32_t>(ceil_div<int64_t>(std::min(p.tile_columns, p.k), Traits::kColumns));
  args.tiles_across = static_cast<int32_t>(ceil_div(p.k, p.tile_columns));
  // Blocks share K at a multiple of the tiles' columns, and of what their warpgroups take at a time.
  int const unit = args.tile_stages < args.stages ? args.tile_stages : Traits::kGroups;
  args.split = split;
  args.share = ceil_div(ceil_div(args.stages, unit), split) * unit;
  args.grid.down = static_cast<int32_t>(ceil_div<int64_t>(p.m, Traits::kTokens));
  args.grid.across = static_cast<int32_t>(ceil_div<int64_t>(p.n, kSm90Rows));
  // Tiles of tokens walked before the next rows of W: codes are small beside X, so that nearly all of X stays in L2.
  double const x_bytes = 2.0 * Traits::kTokens, w_bytes = kSm90Rows * double{Traits::kWords} * 4 / Traits::kColumns;
  int const group = static_cast<int>(std::lround(std::sqrt(multiprocessors * w_bytes / x_bytes)));
  args.grid.group = std::clamp(group, 1, args.grid.down);
  bool const persistent = split == 1 && Traits::kGroups == 1;
  int const tiles = args.grid.clusters(), blocks = persistent ? std::min(multiprocessors, tiles) : tiles * split;
  return launch_split(reinterpret_cast<void const*>(linear_sm90<Traits>), &args, dim3(static_cast<unsigned>(blocks)),
                      Traits::kThreads, static_cast<size_t>(Traits::kSharedBytes), split, stream);
}

}  // namespace graphopt::vq
