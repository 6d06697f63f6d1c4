// Launches of the kernels without tensor cores over codes, for one element type.
#pragma once

#include <algorithm>

#include "attention/cached/launch_append.cuh"
#include "attention/vq/encode.cuh"
#include "attention/vq/expand.cuh"
#include "attention/vq/launch.cuh"
#include "attention/vq/rank.cuh"

namespace graphopt::attention {

template <class T>
Status launch_encode(VqParams const& p, Workspace const& workspace, cudaStream_t stream) {
  CachedParams const& cache = p.cache;
  EncodeArgs<T> args{append_args<T>(cache, workspace, false)};
  args.vectors = vector_aligned(cache);
  args.tokens = cache.batch * cache.seq;
  args.codebook_k = static_cast<T const*>(p.codebook_k);
  args.codebook_v = static_cast<T const*>(p.codebook_v);
  args.codes_k = static_cast<uint8_t*>(cache.present_k);
  args.codes_v = static_cast<uint8_t*>(cache.present_v);
  // Parts of the tokens read the codebooks again. To rank pays where a warp meets 16 tokens several times.
  constexpr int64_t kMostParts = 64, kRankPart = 256;
  bool const ranks = sizeof(T) == 2 && p.vector <= 4 && cache.seq >= 32 && args.tokens >= kRankPart;
  int64_t const units = 2 * cache.kv_heads * (cache.head_size / p.vector);
  int64_t const parts = std::min(kMostParts, ceil_div<int64_t>(args.tokens, ranks ? kRankPart : 32));
  int64_t const size = args.vectors ? Vec<T>::kSize : 1;
  int64_t const queries = std::max<int64_t>(args.append.query_rows * (cache.head_size / size), args.append.counters);
  args.blocks = static_cast<int32_t>(ceil_div<int64_t>(units, kEncodeWarps));
  int64_t const blocks = args.blocks + ceil_div<int64_t>(queries, 32 * kEncodeWarps);
  if (blocks > 2147483647) return Status::kTooLarge;
  dim3 const grid(static_cast<unsigned>(blocks), static_cast<unsigned>(parts));
  dim3 const block(32 * kEncodeWarps);
  if constexpr (sizeof(T) == 2) {
    if (ranks) {
      auto const kernel = p.vector == 2 ? attention_rank<T, 2> : attention_rank<T, 4>;
      return launch_at(Start::kEarly, kernel, grid, block, 0, stream, args);
    }
  }
  switch (p.vector) {
    case 2:
      return launch_at(Start::kEarly, attention_encode<T, 2>, grid, block, 0, stream, args);
    case 4:
      return launch_at(Start::kEarly, attention_encode<T, 4>, grid, block, 0, stream, args);
    case 8:
      return launch_at(Start::kEarly, attention_encode<T, 8>, grid, block, 0, stream, args);
    case 16:
      return launch_at(Start::kEarly, attention_encode<T, 16>, grid, block, 0, stream, args);
  }
  return Status::kBadShape;
}

template <class T>
Status launch_vq_expanded(VqArgs<T> const& args, VqParams const& p, Workspace const& workspace, bool vectors,
                          cudaStream_t stream) {
  auto const expand = [&](Slice const& slice, T* k, T* v, cudaStream_t on) {
    int64_t const pieces = ceil_div(args.cache.capacity, kVqExpandTokens);
    dim3 const grid(static_cast<unsigned>(pieces * slice.batch * slice.kv_heads), 2);
    dim3 const block(kVqExpandThreads);
    switch (args.vector) {
      case 2:
        return launch(attention_vq_expand<T, 2>, grid, block, 0, on, args, slice, k, v);
      case 4:
        return launch(attention_vq_expand<T, 4>, grid, block, 0, on, args, slice, k, v);
      case 8:
        return launch(attention_vq_expand<T, 8>, grid, block, 0, on, args, slice, k, v);
      default:
        return launch(attention_vq_expand<T, 16>, grid, block, 0, on, args, slice, k, v);
    }
  };
  return launch_expanded(args.cache, workspace, p.cache.workspace, vectors, expand, stream);
}

}  // namespace graphopt::attention
