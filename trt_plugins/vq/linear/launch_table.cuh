// Launch of the kernels that look products up.
#pragma once

#include <algorithm>

#include "common/launch.h"
#include "vq/linear/kernel_lattice.cuh"
#include "vq/linear/kernel_wide.cuh"
#include "vq/linear/params.h"

namespace graphopt::vq {

/// Blocks for so many slices: as many as there are multiprocessors, or a few less if then each has one slice only and
/// makes its table once.
inline int table_blocks(int multiprocessors, int slices, int units) {
  int const even = multiprocessors / slices * slices;
  if (16 * even >= 15 * multiprocessors && even <= slices * units) return even;
  return static_cast<int>(std::min<int64_t>(multiprocessors, int64_t{slices} * units));
}

/// Shape: TableShape, WideShape or LatticeShape.
template <class Shape>
Status launch_table(LinearParams const& p, void (*kernel)(TableArgs<typename Shape::T>), cudaStream_t stream) {
  using T = typename Shape::T;
  int multiprocessors = 0;
  GRAPHOPT_TRY(multiprocessor_count(&multiprocessors));
  TableArgs<T> args{};
  args.x = static_cast<T const*>(p.x);
  args.codes = p.codes;
  args.codebooks = static_cast<__half const*>(p.codebooks);
  args.ratios = p.ratios;
  args.scale = p.scale;
  args.bias = static_cast<T const*>(p.bias);
  args.y = static_cast<T*>(p.y);
  args.sums = static_cast<float*>(p.workspace);
  args.n = static_cast<int32_t>(p.n);
  args.k = static_cast<int32_t>(p.k);
  args.row_bytes = static_cast<int32_t>(row_bytes(p.k, p.vector, p.bits, p.residuals));
  args.slices = static_cast<int32_t>(ceil_div<int64_t>(p.k, Shape::kColumns));
  args.units = static_cast<int32_t>(ceil_div<int64_t>(p.n, Shape::kRows));
  if (Shape::kTiled) args.units += args.units % 2;
  args.blocks = Shape::kTiled ? std::min(multiprocessors, args.slices * args.units / 2)
                              : table_blocks(multiprocessors, args.slices, args.units);
  args.tile_pairs = static_cast<int32_t>(ceil_div<int64_t>(std::min(p.tile_rows, p.n), 2 * Shape::kRows));
  args.tile_slices = static_cast<int32_t>(ceil_div<int64_t>(std::min(p.tile_columns, p.k), Shape::kColumns));
  args.tiles_across = static_cast<int32_t>(ceil_div(p.k, p.tile_columns));
  GRAPHOPT_TRY(launch_at(Start::kEarly, kernel, dim3(static_cast<unsigned>(args.blocks)), dim3(kTableThreads),
                         static_cast<size_t>(Shape::kSharedBytes), stream, args));
  constexpr int kRows = kAddThreads / kAddLanes;
  return launch_at(Start::kEarly, linear_add_parts<T, Shape::kTiled>,
                   dim3(static_cast<unsigned>(ceil_div<int64_t>(p.n, kRows))), dim3(kAddThreads), 0, stream, args);
}

template <class Weights>
Status launch_book_table(LinearParams const& p, cudaStream_t stream) {
  using Shape = TableShape<Weights>;
  return launch_table<Shape>(p, linear_table<Shape>, stream);
}

template <class Weights>
Status launch_wide_table(LinearParams const& p, cudaStream_t stream) {
  using Shape = WideShape<Weights>;
  return launch_table<Shape>(p, linear_wide_table<Shape>, stream);
}

template <class T>
Status launch_lattice_table(LinearParams const& p, cudaStream_t stream) {
  return launch_table<LatticeShape<T>>(p, linear_lattice_table<T>, stream);
}

}  // namespace graphopt::vq
