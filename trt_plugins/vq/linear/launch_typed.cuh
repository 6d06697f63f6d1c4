// The launches of a plan for one element type. few_<type>.cu and sm90_<type>.cu instantiate them: they compile in
// parallel.
#pragma once

#include "vq/linear/formats.cuh"
#include "vq/linear/launch.h"
#include "vq/linear/launch_few.cuh"
#include "vq/linear/launch_table.cuh"

namespace graphopt::vq {

using Few8 = FewShape</*kRowWarps=*/8, /*kGroups=*/2, /*kTokenTiles=*/1>;
using Few16 = FewShape<8, 2, 2>;

/// Whether the plan knows what a step of Few16, and so of Few8, takes.
template <class Weights>
constexpr bool knows_step(Preset preset) {
  return FewTokens<Weights, Few16>::panel_bytes(1, 1) == kStepBytes[static_cast<int>(preset)];
}

/// Codebooks that change along K.
template <class Weights>
Status launch_tiled(LinearParams const& p, Plan const& plan, cudaStream_t stream) {
  if (plan.kernel == LinearKernel::kFew8) return launch_few<Weights, Few8>(p, plan.split, plan.panel_bytes, stream);
  if (plan.kernel == LinearKernel::kFew16) return launch_few<Weights, Few16>(p, plan.split, plan.panel_bytes, stream);
  return Status::kBadOperation;
}

/// Codebooks that all of the weight shares. kWarps, kBlocks: of the rows kernel, and for which a multiprocessor has
/// room.
template <class Weights, int kWarps, int kBlocks>
Status launch_whole(LinearParams const& p, Plan const& plan, cudaStream_t stream) {
  if (plan.kernel == LinearKernel::kFew16) return launch_few<Weights, Few16>(p, plan.split, plan.panel_bytes, stream);
  if constexpr (Weights::kCopies == 1) {  // codebooks so large that all of X may not fit beside them
    if (plan.kernel == LinearKernel::kFew8) return launch_few<Weights, Few8>(p, plan.split, plan.panel_bytes, stream);
  }
  if (plan.kernel != LinearKernel::kRows8) return Status::kBadOperation;
  if constexpr (Weights::kLattice) {
    if (p.m == 1) return launch_rows<Weights, RowsShape<kWarps, /*kTokenTiles=*/0, kBlocks>>(p, stream);
  }
  return launch_rows<Weights, RowsShape<kWarps, 1, kBlocks>>(p, stream);
}

template <class T>
Status launch_few_typed(LinearParams const& p, Plan const& plan, cudaStream_t stream) {
  static_assert(knows_step<Gptvq2<T>>(Preset::kGptvq2) && knows_step<Aqlm2<T>>(Preset::kAqlm2) &&
                knows_step<Aqlm3<T>>(Preset::kAqlm3) && knows_step<Quip4<T>>(Preset::kQuip4));
  switch (plan.preset) {
    case Preset::kGptvq2:
      if (plan.kernel == LinearKernel::kTable) return launch_book_table<Gptvq2<T>>(p, stream);
      return launch_tiled<Gptvq2<T>>(p, plan, stream);
    case Preset::kAqlm2:
      if (plan.kernel == LinearKernel::kTable) return launch_book_table<Aqlm2<T>>(p, stream);
      return launch_whole<Aqlm2<T>, 8, 2>(p, plan, stream);
    case Preset::kAqlm3:
      return launch_whole<Aqlm3<T>, 8, 1>(p, plan, stream);
    case Preset::kQuip4:
      if (plan.kernel == LinearKernel::kTable) return launch_lattice_table<T>(p, stream);
      return launch_whole<Quip4<T>, 16, 1>(p, plan, stream);
    case Preset::kNone:
      break;
  }
  return Status::kBadOperation;
}

}  // namespace graphopt::vq
