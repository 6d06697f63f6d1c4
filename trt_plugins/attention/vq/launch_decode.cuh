// Launch of decode over codes for one element type.
#pragma once

#include <algorithm>

#include "attention/vq/decode.cuh"
#include "attention/vq/launch.cuh"

namespace graphopt::attention {

template <class T_, int kD, int kVector, int kHeads>
struct VqDecodeTraits {
  using T = T_;
  using Shape = VqDecodeShape<kD, kVector, kHeads>;
};

template <class Traits>
Status launch_vq_shape(VqArgs<typename Traits::T> const& args, DeviceLimits const& device, bool* done,
                       cudaStream_t stream) {
  using Shape = typename Traits::Shape;
  if (Shape::kSharedBytes > device.shared_per_block) return Status::kOk;
  *done = true;
  unsigned const blocks = static_cast<unsigned>(std::min(kMaxDecodeBlocks, device.multiprocessors));
  return launch_at(Start::kEarly, attention_vq_decode<Traits>, dim3(blocks), dim3(Shape::kThreads), Shape::kSharedBytes,
                   stream, args);
}

/// As many query rows to a table as there are, up to 4.
template <class T, int kD, int kVector>
Status launch_vq_heads(VqArgs<T> const& args, DeviceLimits const& device, bool* done, cudaStream_t stream) {
  int64_t const rows = int64_t{args.cache.seq} * args.cache.group;
  if (rows == 1) return launch_vq_shape<VqDecodeTraits<T, kD, kVector, 1>>(args, device, done, stream);
  if (rows == 2) return launch_vq_shape<VqDecodeTraits<T, kD, kVector, 2>>(args, device, done, stream);
  return launch_vq_shape<VqDecodeTraits<T, kD, kVector, 4>>(args, device, done, stream);
}

template <class T>
Status launch_vq_decode(VqArgs<T> const& args, DeviceLimits const& device, bool* done, cudaStream_t stream) {
  int32_t const d = args.cache.head_size, vector = args.vector;
  if (d == 128 && vector == 2) return launch_vq_heads<T, 128, 2>(args, device, done, stream);
  if (d == 128 && vector == 4) return launch_vq_heads<T, 128, 4>(args, device, done, stream);
  if (d == 64 && vector == 2) return launch_vq_heads<T, 64, 2>(args, device, done, stream);
  return Status::kOk;
}

}  // namespace graphopt::attention
