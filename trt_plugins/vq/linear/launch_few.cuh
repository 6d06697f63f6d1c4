// Launch of the kernel for few tokens.
#pragma once

#include <algorithm>

#include "common/launch.h"
#include "vq/linear/kernel_few.cuh"
#include "vq/linear/kernel_rows.cuh"
#include "vq/linear/lattice.cuh"
#include "vq/linear/launch_split.h"
#include "vq/linear/params.h"

namespace graphopt::vq {

template <class T>
FewArgs<T> few_args(LinearParams const& p, int columns) {
  FewArgs<T> args;
  args.x = static_cast<T const*>(p.x);
  args.codes = p.codes;
  args.codebooks = static_cast<__half const*>(p.codebooks);
  args.ratios = p.ratios;
  args.scale = p.scale;
  args.bias = static_cast<T const*>(p.bias);
  args.y = static_cast<T*>(p.y);
  args.m = static_cast<int32_t>(p.m);
  args.n = static_cast<int32_t>(p.n);
  args.k = static_cast<int32_t>(p.k);
  args.row_bytes = static_cast<int32_t>(row_bytes(p.k, p.vector, p.bits, p.residuals));
  args.tile_rows = static_cast<int32_t>(std::min(p.tile_rows, p.n));
  args.tile_columns = static_cast<int32_t>(std::min(p.tile_columns, p.k));
  args.tiles_across = static_cast<int32_t>(ceil_div(p.k, p.tile_columns));
  args.chunks = static_cast<int32_t>(ceil_div<int64_t>(p.k, columns));
  args.panel = 1;
  return args;
}

/// What a kernel of few tokens was compiled for.
struct FewSizes {
  int chunk;        // columns that a warp takes at a time
  int groups;       // of warps that share K
  int tokens;       // of a block
  int rows;         // of a block
  int threads;      // of a block
  int table_bytes;  // of codebooks in shared memory

  /// Bytes of a panel of X of so many tokens.
  int panel_bytes(int many, int steps) const { return many * steps * chunk * groups * 2; }
};

/// `panel_bytes`: of X in shared memory, about, and twice.
template <class T>
Status launch_few(void const* kernel, FewSizes const& sizes, LinearParams const& p, int split, int panel_bytes,
                  cudaStream_t stream) {
  auto args = few_args<T>(p, sizes.chunk);
  int const tokens = static_cast<int>(std::min<int64_t>(p.m, sizes.tokens));
  int const steps = ceil_div(ceil_div(args.chunks, split), sizes.groups);
  args.panel = std::clamp(panel_bytes / sizes.panel_bytes(tokens, 1), 1, steps);
  int const panels = args.panel < steps ? 2 : 1;
  // Sums take the place of codebooks and X.
  int const sums = sizes.groups * tokens * sizes.rows * static_cast<int>(sizeof(float));
  auto const shared =
      static_cast<size_t>(std::max(sizes.table_bytes + panels * sizes.panel_bytes(tokens, args.panel), sums));
  dim3 const grid(static_cast<unsigned>(ceil_div<int64_t>(p.n, sizes.rows) * split),
                  static_cast<unsigned>(ceil_div<int64_t>(p.m, sizes.tokens)));
  return launch_split(kernel, &args, grid, sizes.threads, shared, split, stream);
}

template <class Weights, class Shape>
Status launch_few(LinearParams const& p, int split, int panel_bytes, cudaStream_t stream) {
  using Kernel = FewTokens<Weights, Shape>;
  constexpr FewSizes kSizes{Kernel::kChunk, Shape::kGroups,  Shape::kTokens,
                            Shape::kRows,   Shape::kThreads, Kernel::kTableBytes};
  auto const kernel = reinterpret_cast<void const*>(linear_few<Weights, Shape>);
  return launch_few<typename Weights::T>(kernel, kSizes, p, split, panel_bytes, stream);
}

template <class Weights, class Shape>
Status launch_rows(LinearParams const& p, cudaStream_t stream) {
  using Kernel = RowTiles<Weights, Shape>;
  auto const args = few_args<typename Weights::T>(p, Kernel::kChunk);
  int const tokens = static_cast<int>(std::min<int64_t>(p.m, Shape::kTokens));
  int multiprocessors = 0;
  GRAPHOPT_TRY(multiprocessor_count(&multiprocessors));
  auto const blocks = static_cast<unsigned>(std::min<int64_t>(multiprocessors, ceil_div<int64_t>(p.n, Shape::kRows)));
  dim3 const grid(blocks, static_cast<unsigned>(ceil_div<int64_t>(p.m, Shape::kTokens)));
  return launch_at(Start::kEarly, linear_rows<Weights, Shape>, grid, dim3(Shape::kThreads),
                   static_cast<size_t>(Kernel::shared_bytes(tokens, args.chunks)), stream, args);
}

}  // namespace graphopt::vq
