// The Hopper launches of a plan for one element type.
#pragma once

#include "vq/linear/formats.cuh"
#include "vq/linear/launch.h"
#include "vq/linear/sm90_launch.cuh"

namespace graphopt::vq {

template <class Weights>
Status launch_tile_format(LinearParams const& p, Plan const& plan, cudaStream_t stream) {
  switch (plan.kernel) {
    case LinearKernel::kTile64:
      if constexpr (Weights::kCopies > 1) return launch_sm90<Sm90Traits<Weights, 64>>(p, stream);
      return Status::kBadOperation;
    case LinearKernel::kTile128:
      return launch_sm90<Sm90Traits<Weights, 128>>(p, stream);
    case LinearKernel::kTile256:
      return launch_sm90<Sm90Traits<Weights, 256>>(p, stream);
    default:
      return Status::kBadOperation;
  }
}

template <class T>
Status launch_tile_typed(LinearParams const& p, Plan const& plan, cudaStream_t stream) {
  switch (plan.preset) {
    case Preset::kGptvq2:
      return launch_tile_format<Gptvq2<T>>(p, plan, stream);
    case Preset::kAqlm2:
      return launch_tile_format<Aqlm2<T>>(p, plan, stream);
    case Preset::kAqlm3:
      return launch_tile_format<Aqlm3<T>>(p, plan, stream);
    case Preset::kQuip4:
      return launch_tile_format<Quip4Pairs<T>>(p, plan, stream);
    case Preset::kNone:
      break;
  }
  return Status::kBadOperation;
}

}  // namespace graphopt::vq
