// Launch of decode for one element type.
#pragma once

#include <algorithm>

#include "attention/cached/launch.cuh"
#include "attention/decode.cuh"

namespace graphopt::attention {

/// As many blocks as are resident: each takes an equal share of the work, whatever the lengths are.
template <class Traits>
Status launch_resident(AttentionArgs<typename Traits::T> const& args, DeviceLimits const& device, Start start,
                       cudaStream_t stream) {
  using Shape = typename Traits::Shape;
  int const resident = std::max(1, resident_blocks(device, Shape::kSharedBytes, kDecodeResident));
  int const blocks = std::min(kMaxDecodeBlocks, resident * device.multiprocessors);
  return launch_at(start, attention_decode<Traits>, dim3(static_cast<unsigned>(blocks)), dim3(Shape::kThreads),
                   Shape::kSharedBytes, stream, args);
}

/// The deeper ring where two blocks of it are resident, else the shallower one, which every device of compute capability
/// 8.0 or more can hold.
template <class T, int kD, bool kFewRows>
Status launch_depth(AttentionArgs<T> const& args, DeviceLimits const& device, Start start, cudaStream_t stream) {
  using Deep = DecodeTraits<T, kD, kFewRows, kD <= 64 ? 6 : 3>;
  using Shallow = DecodeTraits<T, kD, kFewRows, 2>;
  if (resident_blocks(device, Deep::Shape::kSharedBytes, kDecodeResident) == kDecodeResident) {
    return launch_resident<Deep>(args, device, start, stream);
  }
  return launch_resident<Shallow>(args, device, start, stream);
}

template <class T, int kD>
Status launch_rows(AttentionArgs<T> const& args, DeviceLimits const& device, Start start, cudaStream_t stream) {
  if (args.seq * args.group <= 8) return launch_depth<T, kD, true>(args, device, start, stream);
  return launch_depth<T, kD, false>(args, device, start, stream);
}

template <class T>
Status launch_decode(AttentionArgs<T> const& args, DeviceLimits const& device, Start start, cudaStream_t stream) {
  if (args.head_size <= 64) return launch_rows<T, 64>(args, device, start, stream);
  if (args.head_size <= 96) return launch_rows<T, 96>(args, device, start, stream);
  if (args.head_size <= 128) return launch_rows<T, 128>(args, device, start, stream);
  return launch_rows<T, 256>(args, device, start, stream);
}

}  // namespace graphopt::attention
