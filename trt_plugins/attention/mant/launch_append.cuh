// Launches of append and expand for one element type.
#pragma once

#include "attention/cached/launch_append.cuh"
#include "attention/expanded.cuh"
#include "attention/mant/append.cuh"
#include "attention/mant/expand.cuh"
#include "attention/mant/launch.cuh"

namespace graphopt::attention {

template <class T>
Status launch_mant_append(MantParams const& p, Workspace const& workspace, bool queries, cudaStream_t stream) {
  CachedParams const& cache = p.cache;
  int64_t const tokens = cache.batch * cache.seq, heads = cache.batch * cache.kv_heads;
  int64_t const pages = ceil_div(cache.seq + p.group - 1, p.group);
  MantAppendArgs<T> args{append_args<T>(cache, workspace, false, queries)};
  args.vectors = vector_aligned(cache);
  args.group = static_cast<int32_t>(p.group);
  args.selector = p.selector;
  args.key_groups = tokens * cache.kv_heads * (cache.head_size / p.group);
  args.few_keys = p.selector == MantSelector::kTrial && args.key_groups <= kMantFewGroups;
  int64_t const keys = ceil_div<int64_t>(args.key_groups, args.few_keys ? kMantAppendThreads / 32 : kMantAppendGroups);
  int64_t const size = args.vectors ? Vec<T>::kSize : 1;
  int64_t const others =
      std::max<int64_t>(args.append.query_rows * append_threads(cache.head_size, size), args.append.counters);
  int64_t const blocks = heads * pages + keys + ceil_div<int64_t>(others, kMantAppendThreads);
  if (blocks > 2147483647) return Status::kTooLarge;
  args.pages = static_cast<int32_t>(pages);
  args.value_blocks = static_cast<int32_t>(heads * pages);
  args.key_blocks = static_cast<int32_t>(keys);
  args.center = static_cast<T const*>(p.k_center);
  args.k = static_cast<uint8_t*>(p.present.k);
  args.k_meta = static_cast<uint16_t*>(p.present.k_meta);
  args.v = static_cast<uint8_t*>(p.present.v);
  args.v_meta = static_cast<uint16_t*>(p.present.v_meta);
  args.v_window = static_cast<int8_t*>(p.present.v_window);
  args.v_scale = static_cast<__half*>(p.present.v_scale);
  args.sink = static_cast<T*>(p.present.sink);
  size_t const shared = static_cast<size_t>(p.group * (cache.head_size + static_cast<int64_t>(sizeof(__half))));
  auto const kernel = p.group == 64 ? attention_mant_append<T, 8> : attention_mant_append<T, 4>;
  return launch_at(Start::kEarly, kernel, dim3(static_cast<unsigned>(blocks)), dim3(kMantAppendThreads), shared, stream,
                   args);
}

template <class T>
Status launch_mant_expanded(MantArgs<T> const& args, MantParams const& p, Workspace const& workspace, bool vectors,
                            cudaStream_t stream) {
  int32_t const group = static_cast<int32_t>(p.group);
  auto const expand = [&](Slice const& slice, T* k, T* v, cudaStream_t on) {
    int64_t const blocks = int64_t{slice.batch} * slice.kv_heads * (args.cache.capacity / group);
    return launch(attention_mant_expand<T>, dim3(static_cast<unsigned>(blocks)), dim3(kMantExpandThreads), 0, on, args,
                  group, slice, k, v);
  };
  return launch_expanded(args.cache, workspace, p.cache.workspace, vectors, expand, stream);
}

}  // namespace graphopt::attention
