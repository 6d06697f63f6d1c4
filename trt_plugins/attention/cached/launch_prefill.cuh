// Launch of prefill for one element type.
#pragma once

#include "attention/cached/launch.cuh"
#include "attention/prefill.cuh"

namespace graphopt::attention {

/// `kernel_args`: what the kernel takes, of which `args` are the sizes.
template <class Traits>
Status launch_prefill_shape(AttentionArgs<typename Traits::T> const& args, typename Traits::Args const& kernel_args,
                            cudaStream_t stream) {
  using Shape = typename Traits::Shape;
  constexpr int32_t kMaxGridYZ = 65535;
  if (args.heads > kMaxGridYZ || args.batch > kMaxGridYZ) return Status::kTooLarge;
  dim3 const grid(static_cast<unsigned>(ceil_div(args.seq, Shape::kRows)), static_cast<unsigned>(args.heads),
                  static_cast<unsigned>(args.batch));
  return launch_at(Start::kEarly, attention_prefill<Traits>, grid, dim3(Shape::kThreads), Shape::kSharedBytes, stream,
                   kernel_args);
}

template <class T>
Status launch_prefill(AttentionArgs<T> const& args, cudaStream_t stream) {
  if (args.head_size <= 64) return launch_prefill_shape<PrefillTraits<T, 64>>(args, args, stream);
  if (args.head_size <= 96) return launch_prefill_shape<PrefillTraits<T, 96>>(args, args, stream);
  if (args.head_size <= 128) return launch_prefill_shape<PrefillTraits<T, 128>>(args, args, stream);
  return launch_prefill_shape<PrefillTraits<T, 256>>(args, args, stream);
}

}  // namespace graphopt::attention
