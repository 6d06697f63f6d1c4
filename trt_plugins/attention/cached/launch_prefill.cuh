// Launch of prefill for one element type.
#pragma once

#include "attention/cached/launch.cuh"
#include "attention/prefill.cuh"
#include "attention/sm90_prefill.h"

namespace graphopt::attention {

template <class Traits>
Status launch_prefill_shape(AttentionArgs<typename Traits::T> const& args, cudaStream_t stream) {
  using Shape = typename Traits::Shape;
  constexpr int32_t kMaxGridYZ = 65535;
  int32_t const heads = args.kv_heads * args.group;
  if (heads > kMaxGridYZ || args.batch > kMaxGridYZ) return Status::kTooLarge;
  dim3 const grid(static_cast<unsigned>(ceil_div(args.seq, Shape::kRows)), static_cast<unsigned>(heads),
                  static_cast<unsigned>(args.batch));
  return launch_at(Start::kEarly, attention_prefill<Traits>, grid, dim3(Shape::kThreads), Shape::kSharedBytes, stream,
                   args);
}

template <class T>
Status launch_prefill(AttentionArgs<T> const& args, cudaStream_t stream) {
#ifdef GRAPHOPT_SM90A
  bool sm90 = false;
  GRAPHOPT_TRY(picks_prefill_sm90(args, true, &sm90));
  if (sm90) return launch_prefill_sm90<T>(args, stream);
#endif
  if (args.head_size <= 64) return launch_prefill_shape<PrefillTraits<T, 64>>(args, stream);
  if (args.head_size <= 96) return launch_prefill_shape<PrefillTraits<T, 96>>(args, stream);
  if (args.head_size <= 128) return launch_prefill_shape<PrefillTraits<T, 128>>(args, stream);
  return launch_prefill_shape<PrefillTraits<T, 256>>(args, stream);
}

}  // namespace graphopt::attention
