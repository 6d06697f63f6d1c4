// Launches of the kernels without tensor cores over codes, for one element type.
#pragma once

#include <algorithm>

#include "attention/cached/launch_append.cuh"
#include "attention/vq/encode.cuh"
#include "attention/vq/expand.cuh"
#include "attention/vq/launch.cuh"
#include "attention/vq/rank.cuh"

namespace graphopt::attention {

/// New tokens from which tensor cores rank centroids.
constexpr int64_t kLeastRanked = 128;

template <class T>
Status launch_encode(VqParams const& p, Workspace const& workspace, bool queries, T* expanded, bool* written,
                     cudaStream_t stream) {
  CachedParams const& cache = p.cache;
  EncodeArgs<T> args{append_args<T>(cache, workspace, false, queries)};
  args.vectors = vector_aligned(cache);
  args.tokens = cache.batch * cache.seq;
  args.codebook_k = static_cast<T const*>(p.codebook_k);
  args.codebook_v = static_cast<T const*>(p.codebook_v);
  args.codes_k = static_cast<uint8_t*>(cache.present_k);
  args.codes_v = static_cast<uint8_t*>(cache.present_v);
  // To rank pays where a warp meets 16 tokens several times. Parts of the tokens read the codebooks again.
  constexpr int64_t kMostParts = 64, kRankBlocks = 1024;
  int64_t const units = 2 * cache.kv_heads * (cache.head_size / p.vector), per_rank = kEncodeWarps * p.vector;
  bool const ranks = sizeof(T) == 2 && p.vector <= 4 && args.tokens >= kLeastRanked && args.vectors &&
                     cache.head_size % per_rank == 0 && is_aligned(p.codebook_k, 4) && is_aligned(p.codebook_v, 4) &&
                     is_aligned(cache.present_k, 8) && is_aligned(cache.present_v, 8);
  int64_t const wanted = ranks ? ceil_div(kRankBlocks, ceil_div<int64_t>(units, kEncodeWarps)) : kMostParts;
  int64_t const tile = ranks ? RankShape<1>::kThreads / p.vector : 32;
  int64_t const parts = std::min(wanted, ceil_div<int64_t>(args.tokens, tile));
  int64_t const size = args.vectors ? Vec<T>::kSize : 1;
  int64_t const others =
      std::max<int64_t>(args.append.query_rows * append_threads(cache.head_size, size), args.append.counters);
  args.blocks = static_cast<int32_t>(ceil_div<int64_t>(units, kEncodeWarps));
  int64_t const blocks = args.blocks + ceil_div<int64_t>(others, 32 * kEncodeWarps);
  if (blocks > 2147483647) return Status::kTooLarge;
  dim3 const grid(static_cast<unsigned>(blocks), static_cast<unsigned>(parts));
  dim3 const block(32 * kEncodeWarps);
  if constexpr (sizeof(T) == 2) {
    if (ranks) {
      *written = expanded != nullptr;
      args.expanded_k = expanded;
      args.expanded_v = expanded + (*written ? cache.batch * cache.kv_heads * cache.capacity * cache.head_size : 0);
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

template <class T, int kVector>
Status launch_vq_expand(VqArgs<T> const& args, Slice const& slice, bool all, T* k, T* v, cudaStream_t stream) {
  DeviceLimits device{};
  GRAPHOPT_TRY(device_limits(&device));
  size_t const shared = staged_book_bytes(args.cache.head_size, sizeof(T));
  bool const staged = shared <= device.shared_per_block && args.cache.head_size / kVector <= kVqExpandThreads &&
                      is_aligned(args.codebook_k, 16) && is_aligned(args.codebook_v, 16);
  int64_t const pieces = ceil_div(args.cache.capacity, kVqExpandTokens);
  dim3 const grid(static_cast<unsigned>(pieces * slice.batch * slice.kv_heads), 2);
  auto const kernel = staged ? attention_vq_expand_staged<T, kVector> : attention_vq_expand<T, kVector>;
  return launch(kernel, grid, dim3(kVqExpandThreads), staged ? shared : 0, stream, args, slice, all, k, v);
}

template <class T>
Status launch_vq_expanded(VqArgs<T> const& args, VqParams const& p, Workspace const& workspace, bool vectors, bool all,
                          cudaStream_t stream) {
  auto const expand = [&](Slice const& slice, T* k, T* v, cudaStream_t on) {
    switch (args.vector) {
      case 2:
        return launch_vq_expand<T, 2>(args, slice, all, k, v, on);
      case 4:
        return launch_vq_expand<T, 4>(args, slice, all, k, v, on);
      case 8:
        return launch_vq_expand<T, 8>(args, slice, all, k, v, on);
      default:
        return launch_vq_expand<T, 16>(args, slice, all, k, v, on);
    }
  };
  return launch_expanded(args.cache, workspace, p.cache.workspace, vectors, expand, stream);
}

}  // namespace graphopt::attention
