// Launch of decode over codes for one element type.
#pragma once

#include <algorithm>

#include "attention/vq/decode.cuh"
#include "attention/vq/grouped.cuh"
#include "attention/vq/launch.cuh"

namespace graphopt::attention {

template <class T_, class Shape_>
struct VqTraits {
  using T = T_;
  using Shape = Shape_;
};

/// A block on every multiprocessor: tables leave no room for two.
template <class Shape, class T>
Status launch_vq_shape(void (*kernel)(VqArgs<T>), VqArgs<T> const& args, DeviceLimits const& device, bool* done,
                       cudaStream_t stream) {
  if (Shape::kSharedBytes > device.shared_per_block) return Status::kOk;
  *done = true;
  unsigned const blocks = static_cast<unsigned>(std::min(kMaxDecodeBlocks, device.multiprocessors));
  return launch_at(Start::kEarly, kernel, dim3(blocks), dim3(Shape::kThreads), Shape::kSharedBytes, stream, args);
}

template <class T, int kD, int kVector>
Status launch_vq_rows(VqArgs<T> const& args, DeviceLimits const& device, bool* done, cudaStream_t stream) {
  using One = VqDecodeShape<kD, kVector>;
  using More = GroupedVqShape<kD, kVector>;
  if (args.cache.seq * args.cache.group == 1) {
    return launch_vq_shape<One, T>(attention_vq_decode<VqTraits<T, One>>, args, device, done, stream);
  }
  return launch_vq_shape<More, T>(attention_vq_grouped<VqTraits<T, More>>, args, device, done, stream);
}

template <class T>
Status launch_vq_decode(VqArgs<T> const& args, DeviceLimits const& device, bool* done, cudaStream_t stream) {
  int32_t const d = args.cache.head_size, vector = args.vector;
  if (d == 128 && vector == 2) return launch_vq_rows<T, 128, 2>(args, device, done, stream);
  if (d == 128 && vector == 4) return launch_vq_rows<T, 128, 4>(args, device, done, stream);
  if (d == 64 && vector == 2) return launch_vq_rows<T, 64, 2>(args, device, done, stream);
  return Status::kOk;
}

}  // namespace graphopt::attention
