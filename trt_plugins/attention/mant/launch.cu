// Checks the arguments, picks the kernel and dispatches on the element type.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "attention/mant/launch.cuh"
#include "attention/mant/policy.h"

namespace graphopt::attention {
namespace {

constexpr int64_t kMaxMantHeadSize = 512;  // of append's shared memory

/// A tensor of the state: its elements and their size.
struct StateTensor {
  void const* past;
  void* present;
  int64_t elements;
  size_t element;
};

void list_state(MantParams const& p, StateTensor (&list)[kStateTensors]) {
  CachedParams const& c = p.cache;
  int64_t const heads = c.batch * c.kv_heads, codes = heads * c.capacity * (c.head_size / 2);
  int64_t const words = heads * c.capacity * (c.head_size / p.group);
  MantState<void const*> const& past = p.past;
  MantState<void*> const& present = p.present;
  list[0] = {past.k, present.k, codes, 1};
  list[1] = {past.k_meta, present.k_meta, words, 2};
  list[2] = {past.v, present.v, codes, 1};
  list[3] = {past.v_meta, present.v_meta, words, 2};
  list[4] = {past.v_window, present.v_window, heads * p.group * c.head_size, 1};
  list[5] = {past.v_scale, present.v_scale, heads * p.group, 2};
  list[6] = {past.sink, present.sink, heads * 2 * c.head_size, element_size(c.dtype)};
}

Status check(MantParams const& p) {
  GRAPHOPT_TRY(check_sizes(p.cache));
  if (p.group != 32 && p.group != 64) return Status::kBadShape;
  if (p.cache.head_size % p.group != 0 || p.cache.capacity % p.group != 0) return Status::kBadShape;
  if (p.selector < MantSelector::kTrial || p.selector > MantSelector::kVariance8) return Status::kBadAttribute;
  return p.cache.head_size > kMaxMantHeadSize ? Status::kTooLarge : Status::kOk;
}

/// Whether all of the state, the queries and the outputs are there, and past is copied where present is other memory.
Status prepare(MantParams const& p, bool* aligned, cudaStream_t stream) {
  constexpr size_t kVector = 16;
  StateTensor list[kStateTensors];
  list_state(p, list);
  *aligned = is_aligned(p.cache.q, kVector);
  for (StateTensor const& tensor : list) {
    GRAPHOPT_TRY(check_pointer(tensor.past, tensor.element));
    GRAPHOPT_TRY(check_pointer(tensor.present, tensor.element));
    *aligned = *aligned && is_aligned(tensor.present, kVector);
  }
  for (StateTensor const& tensor : list) {
    if (tensor.past == tensor.present) continue;
    size_t const bytes = static_cast<size_t>(tensor.elements) * tensor.element;
    GRAPHOPT_CUDA_TRY(cudaMemcpyAsync(tensor.present, tensor.past, bytes, cudaMemcpyDeviceToDevice, stream));
  }
  return Status::kOk;
}

template <class T>
Status launch_typed(MantParams const& p, bool aligned, cudaStream_t stream) {
  Workspace const workspace(p.cache, CacheKind::kCodes);
  // Fast kernels look for the largest product, which is the largest score where the scale is positive.
  bool const vectors = p.cache.scale > 0.0f && vector_aligned(p.cache);
  bool const few = p.cache.seq * p.cache.heads / p.cache.kv_heads <= kMaxMantDecodeRows;
  bool const decodes = sizeof(T) == 2 && p.cache.scale > 0.0f && aligned && few && p.group == kMantPage;
  DeviceLimits device{};
  if (decodes) GRAPHOPT_TRY(device_limits(&device));
  bool const own_queries = decodes && vectors && mant_decode_rotates(p.cache.head_size, device.shared_per_block);
  bool rotates = own_queries;
  AttentionArgs<T> cache = attention_args<T>(p.cache, workspace);
  if (own_queries) {
    take_rotation(p.cache, &cache);
  } else {
    GRAPHOPT_TRY(leave_rotation(p.cache, vectors, &cache, &rotates));
  }
  GRAPHOPT_TRY(launch_mant_append<T>(p, workspace, !rotates, stream));
  MantArgs<T> const args{cache,
                         static_cast<uint16_t const*>(p.present.k_meta),
                         static_cast<uint16_t const*>(p.present.v_meta),
                         static_cast<int8_t const*>(p.present.v_window),
                         static_cast<__half const*>(p.present.v_scale),
                         static_cast<T const*>(p.present.sink),
                         static_cast<T const*>(p.k_center)};
  if constexpr (sizeof(T) == 2) {
    bool done = false;
    if (decodes) GRAPHOPT_TRY(launch_mant_decode<T>({args, own_queries}, device, &done, stream));
    if (done) return Status::kOk;
  }
  return launch_mant_expanded<T>(args, p, workspace, vectors, stream);
}

}  // namespace

Status launch_mant(MantParams const& params, cudaStream_t stream) {
  GRAPHOPT_TRY(check(params));
  CachedParams const& cache = params.cache;
  if (cache.batch == 0) return Status::kOk;
  MantParams p = params;
  p.cache.past_k = p.past.k;
  p.cache.past_v = p.past.v;
  p.cache.present_k = p.present.k;
  p.cache.present_v = p.present.v;
  GRAPHOPT_TRY(check_pointers(p.cache, 1));
  GRAPHOPT_TRY(check_pointer(p.k_center, element_size(cache.dtype)));
  bool aligned = false;
  GRAPHOPT_TRY(prepare(p, &aligned, stream));
  if (cache.seq == 0) return Status::kOk;
  return with_activation_type(cache.dtype, [&](auto zero) { return launch_typed<decltype(zero)>(p, aligned, stream); });
}

}  // namespace graphopt::attention
