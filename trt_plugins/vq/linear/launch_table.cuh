// Launch of the kernels that look products up.
#pragma once

#include <algorithm>

#include "common/launch.h"
#include "vq/linear/kernel_lattice.cuh"
#include "vq/linear/kernel_table.cuh"
#include "vq/linear/params.h"

namespace graphopt::vq {

/// Blocks for so many slices: as many as there are multiprocessors, or less, by at most one of `idle`, if then each has
/// one slice only: it makes its table once, and what blocks read at a time are neighbours, the slices of the same rows.
inline int table_blocks(int multiprocessors, int slices, int units, int idle) {
  int const even = multiprocessors / slices * slices;
  if (idle * even >= (idle - 1) * multiprocessors && even <= slices * units) return even;
  return static_cast<int>(std::min<int64_t>(multiprocessors, int64_t{slices} * units));
}

/// Arguments of a kernel that looks up in slices of `columns` columns and units of `rows` rows; not its blocks.
template <class T>
TableArgs<T> table_args(LinearParams const& p, int columns, int rows) {
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
  args.slices = static_cast<int32_t>(ceil_div<int64_t>(p.k, columns));
  args.units = static_cast<int32_t>(ceil_div<int64_t>(p.n, rows));
  args.tile_pairs = static_cast<int32_t>(ceil_div<int64_t>(std::min(p.tile_rows, p.n), 2 * rows));
  args.tile_slices = static_cast<int32_t>(ceil_div<int64_t>(std::min(p.tile_columns, p.k), columns));
  args.tiles_across = static_cast<int32_t>(ceil_div(p.k, p.tile_columns));
  return args;
}

/// Make y of the sums of slices.
template <class T, bool kTiled>
Status launch_add_parts(TableArgs<T> const& args, cudaStream_t stream) {
  constexpr int kRows = kAddThreads / kAddLanes;
  return launch_at(Start::kEarly, linear_add_parts<T, kTiled>, dim3(static_cast<unsigned>(ceil_div(args.n, kRows))),
                   dim3(kAddThreads), 0, stream, args);
}

/// Shape: TableShape or LatticeShape.
template <class Shape>
Status launch_table(LinearParams const& p, void (*kernel)(TableArgs<typename Shape::T>), cudaStream_t stream) {
  using T = typename Shape::T;
  int multiprocessors = 0;
  GRAPHOPT_TRY(multiprocessor_count(&multiprocessors));
  TableArgs<T> args = table_args<T>(p, Shape::kColumns, Shape::kRows);
  if (Shape::kTiled) args.units += args.units % 2;
  args.blocks = Shape::kTiled ? std::min(multiprocessors, args.slices * args.units / 2)
                              : table_blocks(multiprocessors, args.slices, args.units, Shape::kIdle);
  GRAPHOPT_TRY(launch_at(Start::kEarly, kernel, dim3(static_cast<unsigned>(args.blocks)), dim3(kTableThreads),
                         static_cast<size_t>(Shape::kSharedBytes), stream, args));
  return launch_add_parts<T, Shape::kTiled>(args, stream);
}

template <class Weights>
Status launch_book_table(LinearParams const& p, cudaStream_t stream) {
  using Shape = TableShape<Weights>;
  return launch_table<Shape>(p, linear_table<Shape>, stream);
}

template <class T>
Status launch_lattice_table(LinearParams const& p, cudaStream_t stream) {
  return launch_table<LatticeShape<T>>(p, linear_lattice_table<T>, stream);
}

}  // namespace graphopt::vq
