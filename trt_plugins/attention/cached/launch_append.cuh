// Launches of the kernels without tensor cores, for one element type.
#pragma once

#include "attention/append.cuh"
#include "attention/cached/launch.cuh"
#include "attention/generic.cuh"

namespace graphopt::attention {

template <class T>
AppendArgs<T> append_args(CachedParams const& p, Workspace const& workspace, bool store, bool queries = true) {
  char* const memory = static_cast<char*>(p.workspace);
  int64_t const tokens = p.batch * p.seq;
  return {static_cast<int32_t>(p.seq),
          static_cast<int32_t>(p.kv_heads),
          static_cast<int32_t>(p.heads),
          static_cast<int32_t>(p.head_size),
          static_cast<int32_t>(p.capacity),
          static_cast<int32_t>(p.tables),
          p.rotary,
          p.rotary && queries ? tokens * p.heads : 0,
          store ? tokens * p.kv_heads : 0,
          static_cast<int32_t>((workspace.partial - workspace.counters) / sizeof(int32_t)),
          static_cast<T const*>(p.q),
          static_cast<T const*>(p.k),
          static_cast<T const*>(p.v),
          static_cast<T const*>(p.cos),
          static_cast<T const*>(p.sin),
          p.start,
          reinterpret_cast<T*>(memory + workspace.rotated),
          static_cast<T*>(p.present_k),
          static_cast<T*>(p.present_v),
          reinterpret_cast<int32_t*>(memory + workspace.counters)};
}

template <class T>
Status launch_append(CachedParams const& p, Workspace const& workspace, bool queries, cudaStream_t stream) {
  constexpr int kThreads = 256;
  AppendArgs<T> const args = append_args<T>(p, workspace, true, queries);
  bool const vectors = is_aligned(p.present_k, 16) && is_aligned(p.present_v, 16) && vector_aligned(p);
  int64_t const size = vectors ? Vec<T>::kSize : 1;
  int64_t const rows = args.query_rows + 2 * args.cache_rows;
  int64_t const threads = rows * append_threads(p.head_size, size);
  int64_t const blocks = ceil_div<int64_t>(threads > args.counters ? threads : args.counters, kThreads);
  if (blocks > 2147483647) return Status::kTooLarge;
  dim3 const grid(static_cast<unsigned>(blocks));
  auto const kernel = vectors ? attention_append<T, Vec<T>::kSize> : attention_append<T, 1>;
  return launch_at(Start::kEarly, kernel, grid, dim3(kThreads), 0, stream, args);
}

template <class T>
Status launch_generic(AttentionArgs<T> const& args, cudaStream_t stream) {
  dim3 const grid(static_cast<unsigned>(int64_t{args.batch} * args.seq * args.kv_heads * args.group));
  size_t const shared = size_t{1 + kGenericWarps} * static_cast<size_t>(args.head_size) * sizeof(float);
  return launch(attention_generic<T>, grid, dim3(32 * kGenericWarps), shared, stream, args);
}

}  // namespace graphopt::attention
