// Launch of prefill over codes for one element type.
#pragma once

#include "attention/cached/launch_prefill.cuh"
#include "attention/vq/launch.cuh"

namespace graphopt::attention {

template <class T, int kVector>
Status launch_vq_prefill_vector(VqArgs<T> const& args, bool* done, cudaStream_t stream) {
  *done = true;
  if (args.cache.head_size <= 64) {
    return launch_prefill_shape<PrefillTraits<T, 64, kVector>>(args.cache, args, stream);
  }
  return launch_prefill_shape<PrefillTraits<T, 128, kVector>>(args.cache, args, stream);
}

template <class T>
Status launch_vq_prefill(VqArgs<T> const& args, bool* done, cudaStream_t stream) {
  if (args.cache.head_size > 128 || args.cache.head_size % 8 != 0) return Status::kOk;
  if (args.vector == 2) return launch_vq_prefill_vector<T, 2>(args, done, stream);
  if (args.vector == 4) return launch_vq_prefill_vector<T, 4>(args, done, stream);
  return Status::kOk;
}

}  // namespace graphopt::attention
