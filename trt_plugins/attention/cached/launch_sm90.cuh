// Launch of Hopper's prefill for one element type.
#pragma once

#include <algorithm>
#include <type_traits>

#include "attention/sm90_prefill.cuh"
#include "common/tensor_map.h"

namespace graphopt::attention {

/// Keys and values of the heads that are worked on together: most of L2, of which queries and outputs take some.
constexpr int64_t kSectionBytes = int64_t{32} << 20;

template <class Traits>
Status launch_prefill_sm90_shape(AttentionArgs<typename Traits::T> const& attention, DType type, cudaStream_t stream) {
  Sm90PrefillArgs<typename Traits::T> args;
  int64_t const d = Traits::kD, rows = int64_t{attention.batch} * attention.kv_heads * attention.capacity;
  GRAPHOPT_TRY(encode_tensor_map(&args.q, attention.q, type, int64_t{attention.batch} * attention.seq,
                                 attention.heads * d, Traits::kRows));
  GRAPHOPT_TRY(encode_tensor_map(&args.k, attention.k, type, rows, d, Traits::kTokens));
  GRAPHOPT_TRY(encode_tensor_map(&args.v, attention.v, type, rows, d, Traits::kTokens));
  args.attention = attention;
  args.tiles = ceil_div(attention.seq, Traits::kRows);
  args.heads = attention.batch * attention.kv_heads * attention.group;
  // Lengths are not known here: tokens that were there before would only make sections smaller.
  int64_t const fit = std::max<int64_t>(1, kSectionBytes / (2 * d * 2 * attention.seq));
  args.section = static_cast<int32_t>(std::min<int64_t>(args.heads, fit * attention.group));
  int multiprocessors = 0;
  GRAPHOPT_TRY(multiprocessor_count(&multiprocessors));
  int64_t const items = int64_t{args.tiles} * args.heads;
  return launch_at(Start::kEarly, attention_prefill_sm90<Traits>,
                   dim3(static_cast<unsigned>(std::min<int64_t>(multiprocessors, items))), dim3(Traits::kThreads),
                   Traits::kSharedBytes, stream, args);
}

template <class T>
Status launch_prefill_sm90(AttentionArgs<T> const& args, cudaStream_t stream) {
  constexpr DType kType = std::is_same_v<T, __half> ? DType::kFloat16 : DType::kBFloat16;
  if (args.head_size == 64) {
    return launch_prefill_sm90_shape<Sm90PrefillTraits<T, 64, 3, 128>>(args, kType, stream);
  }
  return launch_prefill_sm90_shape<Sm90PrefillTraits<T, 128, 2, 128>>(args, kType, stream);
}

}  // namespace graphopt::attention
