// Launches of the kernels without tensor cores over codes, for one element type.
#pragma once

#include <algorithm>

#include "attention/cached/launch_append.cuh"
#include "attention/generic.cuh"
#include "attention/vq/encode.cuh"
#include "attention/vq/launch.cuh"

namespace graphopt::attention {

template <class T>
Status launch_encode(VqParams const& p, Workspace const& workspace, cudaStream_t stream) {
  CachedParams const& cache = p.cache;
  EncodeArgs<T> const args{append_args<T>(cache, workspace, false),
                           cache.batch * cache.seq,
                           static_cast<T const*>(p.codebook_k),
                           static_cast<T const*>(p.codebook_v),
                           static_cast<uint8_t*>(cache.present_k),
                           static_cast<uint8_t*>(cache.present_v)};
  constexpr int64_t kMostParts = 64;  // each reads the codebooks again
  int64_t const units = 2 * cache.kv_heads * (cache.head_size / p.vector);
  int64_t const parts = std::min(kMostParts, ceil_div<int64_t>(args.tokens, 32));
  dim3 const grid(static_cast<unsigned>(ceil_div<int64_t>(units, kEncodeWarps)), static_cast<unsigned>(parts));
  dim3 const block(32 * kEncodeWarps);
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
Status launch_vq_generic(VqArgs<T> const& args, cudaStream_t stream) {
  AttentionArgs<T> const& cache = args.cache;
  dim3 const grid(static_cast<unsigned>(int64_t{cache.batch} * cache.seq * cache.heads));
  size_t const shared = size_t{1 + kGenericWarps} * static_cast<size_t>(cache.head_size) * sizeof(float);
  Coded<T> const keys{cache.head_size, args.vector, args.codebook_k};
  Coded<T> const values{cache.head_size, args.vector, args.codebook_v};
  return launch(attention_generic<T, Coded<T>, Coded<T>>, grid, dim3(32 * kGenericWarps), shared, stream, cache, keys,
                values);
}

}  // namespace graphopt::attention
