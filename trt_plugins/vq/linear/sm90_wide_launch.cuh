// Launch of the Hopper kernel that looks products up.
#pragma once

#include "common/launch.h"
#include "common/tensor_map.h"
#include "vq/linear/launch_split.h"
#include "vq/linear/launch_table.cuh"
#include "vq/linear/params.h"
#include "vq/linear/sm90_wide.cuh"

namespace graphopt::vq {

/// Shape: a WideShape.
template <class Shape>
Status launch_wide(LinearParams const& p, cudaStream_t stream) {
  using T = typename Shape::T;
  int multiprocessors = 0;
  GRAPHOPT_TRY(multiprocessor_count(&multiprocessors));
  WideArgs<T> args;
  args.table = table_args<T>(p, Shape::kColumns, Shape::kRows);
  GRAPHOPT_TRY(
      encode_tensor_map(&args.codes, p.codes, DType::kInt8, p.n, args.table.row_bytes, Shape::kBoxRows, Shape::kPitch));
  int const sets = ceil_div(args.table.slices, Shape::kBlocks), units = args.table.units;
  args.walk = {sets, units, table_blocks(multiprocessors / Shape::kBlocks, sets, units, Shape::kIdle)};
  args.table.blocks = args.walk.clusters * Shape::kBlocks;
  GRAPHOPT_TRY(launch_split(reinterpret_cast<void const*>(linear_wide_sm90<Shape>), &args,
                            dim3(static_cast<unsigned>(args.table.blocks)), Shape::kThreads,
                            static_cast<size_t>(Shape::kSharedBytes), Shape::kBlocks, stream));
  return launch_add_parts<T, Shape::kTiled>(args.table, stream);
}

}  // namespace graphopt::vq
