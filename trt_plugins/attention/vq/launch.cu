// Checks the arguments, picks the kernel and dispatches on the element type.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "attention/vq/launch.cuh"

namespace graphopt::attention {
namespace {

Status check(VqParams const& p) {
  GRAPHOPT_TRY(check_sizes(p.cache));
  bool const known = p.vector == 2 || p.vector == 4 || p.vector == 8 || p.vector == 16;
  return known && p.cache.head_size % p.vector == 0 ? Status::kOk : Status::kBadShape;
}

/// Whether rows of codes, codebooks and q can be read 16 bytes at a time.
bool vectors(VqParams const& p) {
  constexpr size_t kVector = 16;
  for (void const* pointer : {p.cache.q, p.codebook_k, p.codebook_v, static_cast<void const*>(p.cache.present_k),
                              static_cast<void const*>(p.cache.present_v)}) {
    if (!is_aligned(pointer, kVector)) return false;
  }
  return true;
}

template <class T>
Status launch_typed(VqParams const& p, cudaStream_t stream) {
  Workspace const workspace(p.cache, CacheKind::kCodes);
  // Fast kernels look for the largest product, which is the largest score where the scale is positive.
  bool const expanded_vectors = p.cache.scale > 0.0f && vector_aligned(p.cache);
  bool rotates = false;
  AttentionArgs<T> cache = attention_args<T>(p.cache, workspace);
  GRAPHOPT_TRY(leave_rotation(p.cache, expanded_vectors, &cache, &rotates));
  bool const few = p.cache.seq * cache.group <= kMaxVqDecodeRows;
  bool const whole =
      !few && expands_at_once(p.cache.batch * p.cache.kv_heads, p.cache.capacity, p.cache.head_size, sizeof(T));
  T* const expanded = reinterpret_cast<T*>(static_cast<char*>(p.cache.workspace) + workspace.expanded);
  bool written = false;
  GRAPHOPT_TRY(launch_encode<T>(p, workspace, !rotates, whole ? expanded : nullptr, &written, stream));
  VqArgs<T> const args{cache, static_cast<int32_t>(p.vector), static_cast<T const*>(p.codebook_k),
                       static_cast<T const*>(p.codebook_v)};
  if constexpr (sizeof(T) == 2) {
    bool done = false;
    bool const fast = p.cache.scale > 0.0f && vectors(p);
    if (fast && few) {
      DeviceLimits device{};
      GRAPHOPT_TRY(device_limits(&device));
      GRAPHOPT_TRY(launch_vq_decode<T>(args, device, &done, stream));
    }
    if (done) return Status::kOk;
  }
  return launch_vq_expanded<T>(args, p, workspace, expanded_vectors, !written, stream);
}

}  // namespace

Status launch_vq(VqParams const& params, cudaStream_t stream) {
  GRAPHOPT_TRY(check(params));
  CachedParams const& cache = params.cache;
  if (cache.batch == 0) return Status::kOk;
  GRAPHOPT_TRY(check_pointers(cache, 1));
  GRAPHOPT_TRY(check_pointer(params.codebook_k, element_size(cache.dtype)));
  GRAPHOPT_TRY(check_pointer(params.codebook_v, element_size(cache.dtype)));
  GRAPHOPT_TRY(copy_cache(cache, cache.head_size / params.vector, stream));
  if (cache.seq == 0) return Status::kOk;
  return with_activation_type(cache.dtype, [&](auto zero) { return launch_typed<decltype(zero)>(params, stream); });
}

}  // namespace graphopt::attention
