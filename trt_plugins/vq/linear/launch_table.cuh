// Launch of the kernel that looks products up.
#pragma once

#include <algorithm>

#include "common/launch.h"
#include "vq/linear/kernel_table.cuh"
#include "vq/linear/params.h"

namespace graphopt::vq {

template <class T>
Status launch_table(LinearParams const& p, cudaStream_t stream) {
  int multiprocessors = 0;
  GRAPHOPT_TRY(multiprocessor_count(&multiprocessors));
  TableArgs<T> args{};
  args.x = static_cast<T const*>(p.x);
  args.codes = p.codes;
  args.codebooks = static_cast<__half const*>(p.codebooks);
  args.scale = p.scale;
  args.bias = static_cast<T const*>(p.bias);
  args.y = static_cast<T*>(p.y);
  args.sums = static_cast<float*>(p.workspace);
  args.n = static_cast<int32_t>(p.n);
  args.k = static_cast<int32_t>(p.k);
  args.row_bytes = static_cast<int32_t>(row_bytes(p.k, p.vector, p.bits, p.residuals));
  args.slices = static_cast<int32_t>(ceil_div<int64_t>(p.k, kTableColumns));
  args.units = static_cast<int32_t>(ceil_div<int64_t>(p.n, kTableRows));
  auto const blocks = static_cast<unsigned>(std::min<int64_t>(multiprocessors, int64_t{args.slices} * args.units));
  GRAPHOPT_TRY(
      launch_at(Start::kEarly, linear_table<T>, dim3(blocks), dim3(kTableThreads), kTableSharedBytes, stream, args));
  constexpr int kRows = kAddThreads / kAddLanes;
  return launch_at(Start::kEarly, linear_add_slices<T>, dim3(static_cast<unsigned>(ceil_div<int64_t>(p.n, kRows))),
                   dim3(kAddThreads), 0, stream, args);
}

}  // namespace graphopt::vq
