// Launch of the exact Hopper M-ANT linear. sm90_<decoder>.cu instantiate it: the decoders compile in parallel.
#pragma once

#include <algorithm>

#include "common/tensor_map.h"
#include "mant/linear/launch.cuh"
#include "mant/linear/sm90.h"
#include "mant/linear/sm90_grid.h"
#include "mant/linear/sm90_kernel.cuh"

namespace graphopt::mant {

/// Enqueue y of `p`, whose x is int8, by sums of 64 columns that are scaled.
template <class Decoder>
Status launch_exact(LinearParams const& p, int multiprocessors, cudaStream_t stream) {
  Sm90Args args;
  // A box that reaches past the last token costs more than tokens that exist.
  args.x_rows = static_cast<int32_t>(std::min<int64_t>(p.m, Sm90Tile::kTokens));
  GRAPHOPT_TRY(encode_tensor_map(&args.x, p.x, DType::kInt8, p.m, p.k, args.x_rows));
  int64_t const row_bytes = packed_bytes(p.k);
  GRAPHOPT_TRY(encode_tensor_map(&args.codes, p.codes, DType::kInt8, p.n, row_bytes, kSm90Rows, kSm90CodeBytes));
  GRAPHOPT_TRY(encode_tensor_map(&args.y, p.y, p.dtype, p.m, p.n, Sm90Tile::kStoreTokens));
  args.of = linear_args(p);
  args.stages = static_cast<int32_t>(ceil_div<int64_t>(p.k, kSm90Columns));
  int const down = static_cast<int>(ceil_div<int64_t>(p.m, Sm90Tile::kTokens));
  args.grid = {down, static_cast<int32_t>(ceil_div<int64_t>(p.n, kSm90Rows)),
               tokens_group(down, multiprocessors, Sm90Tile::kTokens, kSm90Rows * 0.5)};
  int const blocks = std::min(multiprocessors, args.grid.clusters());
  return launch(linear_sm90<Decoder>, dim3(static_cast<unsigned>(blocks)), dim3(Sm90Tile::kThreads),
                Sm90Tile::kSharedBytes, stream, args);
}

}  // namespace graphopt::mant
