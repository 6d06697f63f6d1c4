// Launch of decode over a M-ANT cache for one element type.
#pragma once

#include <algorithm>

#include "attention/mant/decode.cuh"
#include "attention/mant/launch.cuh"

namespace graphopt::attention {

template <class Traits>
Status launch_mant_shape(MantDecodeArgs<typename Traits::T> const& args, DeviceLimits const& device, bool* done,
                         cudaStream_t stream) {
  using Shape = typename Traits::Shape;
  int const resident = resident_blocks(device, Shape::kSharedBytes, kMantResident);
  if (resident == 0) return Status::kOk;
  *done = true;
  int const blocks = std::min(kMaxDecodeBlocks, resident * device.multiprocessors);
  return launch_at(Start::kEarly, attention_mant_decode<Traits>, dim3(static_cast<unsigned>(blocks)),
                   dim3(Shape::kThreads), Shape::kSharedBytes, stream, args);
}

template <class T>
Status launch_mant_decode(MantDecodeArgs<T> const& args, DeviceLimits const& device, bool* done, cudaStream_t stream) {
  if (args.all.cache.head_size == 64) return launch_mant_shape<MantDecodeTraits<T, 64, 4>>(args, device, done, stream);
  if (args.all.cache.head_size == 128) return launch_mant_shape<MantDecodeTraits<T, 128, 2>>(args, device, done, stream);
  return Status::kOk;
}

}  // namespace graphopt::attention
