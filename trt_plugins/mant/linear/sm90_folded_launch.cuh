// Launch of the Hopper M-ANT linear for many tokens. sm90_<decoder>.cu instantiate it, so that they compile in parallel.
#pragma once

#include <algorithm>

#include "common/tensor_map.h"
#include "mant/linear/launch.cuh"
#include "mant/linear/sm90.h"
#include "mant/linear/sm90_folded.cuh"
#include "mant/linear/sm90_grid.h"

namespace graphopt::mant {

/// Enqueue y of `p`, whose x is of Decoder::X.
template <class Decoder>
Status launch_folded(LinearParams const& p, FoldedTables const& tables, int multiprocessors, cudaStream_t stream) {
  using Tile = FoldedTile<Decoder::kCodeBytes>;
  constexpr int kPart = Tile::kTokens / Tile::kCluster;
  using X = typename Decoder::X;
  constexpr DType kXType = sizeof(X) == 1                      ? DType::kInt8
                           : std::is_same_v<X, __half> ? DType::kFloat16
                                                               : DType::kBFloat16;
  FoldedArgs args;
  // A box that reaches past the last token costs more than tokens that exist.
  args.x_rows = static_cast<int32_t>(std::min<int64_t>(p.m, kPart));
  GRAPHOPT_TRY(encode_tensor_map(&args.x, p.x, kXType, p.m, p.k, args.x_rows));
  GRAPHOPT_TRY(encode_tensor_map(&args.codes, p.codes, DType::kInt8, p.n, packed_bytes(p.k), kSm90Rows,
                                 Decoder::kCodeBytes));
  GRAPHOPT_TRY(encode_tensor_map(&args.y, p.y, p.dtype, p.m, p.n, Tile::kStoreTokens));
  args.of = linear_args(p);
  args.tables = tables;
  args.stages = static_cast<int32_t>(2 * ceil_div<int64_t>(p.k, 2 * Decoder::kColumns));
  int const down = static_cast<int>(ceil_div<int64_t>(p.m, Tile::kTokens)), at_once = multiprocessors / Tile::kCluster;
  args.grid = {down, static_cast<int32_t>(ceil_div<int64_t>(p.n, kSm90Rows * Tile::kCluster)),
               tokens_group(down, at_once, Tile::kTokens * sizeof(X), kSm90Rows * Tile::kCluster * 0.5)};
  int const clusters = std::min(at_once, args.grid.clusters());
  return launch_at(Start::kEarly, linear_folded<Decoder, Tile>, dim3(static_cast<unsigned>(clusters * Tile::kCluster)),
                   dim3(Tile::kThreads), Tile::kSharedBytes, stream, args);
}

}  // namespace graphopt::mant
