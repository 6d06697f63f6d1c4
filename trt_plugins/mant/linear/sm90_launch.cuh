// Launch of the Hopper M-ANT linear. sm90_<decoder>.cu instantiate it: the decoders compile in parallel.
#pragma once

#include <algorithm>
#include <cmath>

#include "common/tensor_map.h"
#include "mant/linear/launch.cuh"
#include "mant/linear/sm90.h"
#include "mant/linear/sm90_kernel.cuh"

namespace graphopt::mant {

/// Tokens of a tile: as many as registers hold.
template <class Decoder>
constexpr int kSm90Tokens = Decoder::kFolded ? 256 : 128;

/// Tiles of tokens walked before the next rows of W: those that balance what blocks in flight read of X and of W.
template <class Traits>
int tokens_group(int down, int blocks_in_flight) {
  double const w_bytes = kSm90Rows * 0.5, x_bytes = Traits::kTokens * Traits::kXBytes;  // for each column
  return std::clamp(static_cast<int>(std::lround(std::sqrt(blocks_in_flight * w_bytes / x_bytes))), 1, down);
}

/// T: of x.
template <class T, class Decoder>
Status launch_sm90_by(LinearParams const& p, int multiprocessors, cudaStream_t stream) {
  using Traits = Sm90Traits<kSm90Tokens<Decoder>, Decoder::kXBytes>;
  Sm90Args args;
  // A box that reaches past the last token costs more than tokens that exist.
  args.x_rows = static_cast<int32_t>(std::min<int64_t>(p.m, Traits::kTokens));
  DType const x_type = Decoder::kXBytes == 1 ? DType::kInt8 : p.dtype;
  GRAPHOPT_TRY(encode_tensor_map(&args.x, p.x, x_type, p.m, p.k, args.x_rows));
  int64_t const row_bytes = packed_bytes(p.k);
  GRAPHOPT_TRY(encode_tensor_map(&args.codes, p.codes, DType::kInt8, p.n, row_bytes, kSm90Rows, kSm90CodeBytes));
  GRAPHOPT_TRY(encode_tensor_map(&args.y, p.y, p.dtype, p.m, p.n, Traits::kStoreTokens));
  args.of = linear_args(p);
  args.stages = static_cast<int32_t>(ceil_div<int64_t>(p.k, kSm90Columns));
  args.grid.down = static_cast<int32_t>(ceil_div<int64_t>(p.m, Traits::kTokens));
  args.grid.across = static_cast<int32_t>(ceil_div<int64_t>(p.n, kSm90Rows));
  args.grid.group = tokens_group<Traits>(args.grid.down, multiprocessors);
  int const blocks = std::min(multiprocessors, args.grid.clusters());
  return launch(linear_sm90<T, Decoder, kSm90Tokens<Decoder>>, dim3(static_cast<unsigned>(blocks)),
                dim3(Traits::kThreads), Traits::kSharedBytes, stream, args);
}

}  // namespace graphopt::mant
