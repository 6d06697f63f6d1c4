// The Hopper launches of a plan for one element type.
#pragma once

#include "vq/linear/formats.cuh"
#include "vq/linear/launch.h"
#include "vq/linear/sm90_launch.cuh"
#include "vq/linear/sm90_wide_launch.cuh"

namespace graphopt::vq {

/// Fewest: of up to 64 tokens; Few: of up to 128; Many: of more, where room for X is worth more than instructions.
template <class Fewest, class Few, class Many>
Status launch_tile_format(LinearParams const& p, Plan const& plan, cudaStream_t stream) {
  switch (plan.kernel) {
    case LinearKernel::kTile64:
      return launch_sm90<Sm90Traits<Fewest, 64, /*kGroups=*/2>>(p, plan.split, stream);
    case LinearKernel::kTile128:
      return launch_sm90<Sm90Traits<Few, 128>>(p, plan.split, stream);
    case LinearKernel::kTile256:
      return launch_sm90<Sm90Traits<Many, 256>>(p, plan.split, stream);
    default:
      return Status::kBadOperation;
  }
}

template <class T>
Status launch_sm90_typed(LinearParams const& p, Plan const& plan, cudaStream_t stream) {
  switch (plan.preset) {
    case Preset::kGptvq2:
      return launch_tile_format<Gptvq2Pairs<T>, Gptvq2Pairs<T>, Gptvq2<T>>(p, plan, stream);
    case Preset::kAqlm2:
      return launch_tile_format<Aqlm2Pairs<T>, Aqlm2Pairs<T>, Aqlm2<T>>(p, plan, stream);
    case Preset::kAqlm3:
      if (plan.kernel == LinearKernel::kTable) return launch_wide<WideShape<T>>(p, stream);
      return launch_tile_format<Aqlm3<T>, Aqlm3<T>, Aqlm3<T>>(p, plan, stream);
    case Preset::kQuip4:
      return launch_tile_format<LatticeVectors<T>, LatticeVectors<T>, Quip4Pairs<T>>(p, plan, stream);
    case Preset::kNone:
      break;
  }
  return Status::kBadOperation;
}

}  // namespace graphopt::vq
