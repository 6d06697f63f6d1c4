// Checks the arguments, picks the kernel and dispatches on the element type.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "attention/cached/launch.cuh"
#include "attention/work.cuh"

namespace graphopt::attention {
namespace {

constexpr int64_t kMaxCapacity = int64_t{1} << 30;
constexpr int64_t kMaxHeadSize = 4096;                   // of the generic kernel's shared memory
constexpr int64_t kMaxElements = (int64_t{1} << 31) - 1;  // of one dimension of a grid, or of a product of sizes in int32
constexpr size_t kPartAlignment = 256;
constexpr size_t kVector = 16;  // bytes that kernels read at once

size_t aligned(size_t bytes) { return (bytes + kPartAlignment - 1) / kPartAlignment * kPartAlignment; }

}  // namespace

Status check_sizes(CachedParams const& p) {
  if (!is_activation_type(p.dtype)) return Status::kBadType;
  bool const positive = p.heads >= 1 && p.kv_heads >= 1 && p.head_size >= 1 && p.capacity >= 1;
  if (p.batch < 0 || p.seq < 0 || !positive || p.heads % p.kv_heads != 0) return Status::kBadShape;
  if (p.rotary && (p.head_size % 2 != 0 || (p.tables != 1 && p.tables != p.batch))) return Status::kBadShape;
  if (p.capacity > kMaxCapacity || p.head_size > kMaxHeadSize || p.heads > kMaxElements || p.seq > kMaxElements) {
    return Status::kTooLarge;
  }
  if (p.batch > kMaxElements / p.heads || p.batch * p.heads * std::max<int64_t>(p.seq, 1) > kMaxElements) {
    return Status::kTooLarge;
  }
  return p.batch * p.capacity > kMaxElements ? Status::kTooLarge : Status::kOk;
}

Status check_pointers(CachedParams const& p, size_t cache_element) {
  size_t const size = element_size(p.dtype);
  for (void const* pointer : {p.q, p.k, p.v, static_cast<void const*>(p.y)}) GRAPHOPT_TRY(check_pointer(pointer, size));
  for (void const* pointer : {p.past_k, p.past_v, static_cast<void const*>(p.present_k),
                              static_cast<void const*>(p.present_v)}) {
    GRAPHOPT_TRY(check_pointer(pointer, cache_element));
  }
  if (p.rotary) {
    GRAPHOPT_TRY(check_pointer(p.cos, size));
    GRAPHOPT_TRY(check_pointer(p.sin, size));
  }
  GRAPHOPT_TRY(check_pointer(p.start, sizeof(int32_t)));
  return check_pointer(p.workspace, kVector);
}

bool vector_aligned(CachedParams const& p) {
  for (void const* pointer : {p.q, p.k, p.v, p.rotary ? p.cos : p.q, p.rotary ? p.sin : p.q}) {
    if (!is_aligned(pointer, kVector)) return false;
  }
  return p.head_size * element_size(p.dtype) % (p.rotary ? 2 * kVector : kVector) == 0;
}

Status copy_cache(CachedParams const& p, int64_t row_bytes, cudaStream_t stream) {
  size_t const bytes = static_cast<size_t>(p.batch * p.kv_heads * p.capacity * row_bytes);
  if (p.present_k != p.past_k) {
    GRAPHOPT_CUDA_TRY(cudaMemcpyAsync(p.present_k, p.past_k, bytes, cudaMemcpyDeviceToDevice, stream));
  }
  if (p.present_v != p.past_v) {
    GRAPHOPT_CUDA_TRY(cudaMemcpyAsync(p.present_v, p.past_v, bytes, cudaMemcpyDeviceToDevice, stream));
  }
  return Status::kOk;
}

Status device_limits(DeviceLimits* limits) {
  int device = 0, per_block = 0, per_multiprocessor = 0;
  GRAPHOPT_CUDA_TRY(cudaGetDevice(&device));
  GRAPHOPT_CUDA_TRY(cudaDeviceGetAttribute(&limits->multiprocessors, cudaDevAttrMultiProcessorCount, device));
  GRAPHOPT_CUDA_TRY(cudaDeviceGetAttribute(&per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  GRAPHOPT_CUDA_TRY(
      cudaDeviceGetAttribute(&per_multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device));
  limits->shared_per_block = static_cast<size_t>(per_block);
  limits->shared_per_multiprocessor = static_cast<size_t>(per_multiprocessor);
  return Status::kOk;
}

namespace {

template <class T>
Status launch_typed(CachedParams const& p, cudaStream_t stream) {
  Workspace const workspace(p, CacheKind::kPlain);
  AttentionArgs<T> args = attention_args<T>(p, workspace);
  // Fast kernels look for the largest product, which is the largest score where the scale is positive.
  bool const vectors =
      p.scale > 0.0f && vector_aligned(p) && is_aligned(p.present_k, 16) && is_aligned(p.present_v, 16);
  bool rotates = false;
  GRAPHOPT_TRY(leave_rotation(p, vectors, &args, &rotates));
  GRAPHOPT_TRY(launch_append<T>(p, workspace, !rotates, stream));
  return launch_attention<T>(args, vectors, Start::kEarly, stream);
}

}  // namespace

Workspace::Workspace(CachedParams const& p, CacheKind kind) {
  size_t const group = static_cast<size_t>(p.heads / p.kv_heads);
  size_t const rows = std::min(static_cast<size_t>(p.seq) * group, size_t{kDecodeRows});
  rotated = 0;
  counters = aligned(static_cast<size_t>(p.batch * p.seq * p.heads * p.head_size) * element_size(p.dtype));
  partial = counters + aligned(static_cast<size_t>(kMaxDecodeTiles * p.kv_heads * p.batch) * sizeof(int32_t));
  int64_t const floats = PartialMemory::floats(static_cast<int64_t>(rows), p.head_size);
  expanded = partial + aligned(size_t{2 * kMaxDecodeBlocks} * static_cast<size_t>(floats) * sizeof(float));
  int64_t const head = expanded_head_bytes(p.capacity, p.head_size, element_size(p.dtype));
  int64_t const all = std::max(head, std::min(kMaxExpandedBytes, p.batch * p.kv_heads * head));
  bytes = expanded + (kind == CacheKind::kCodes ? static_cast<size_t>(all) : 0);
}

size_t cached_workspace_bytes(CachedParams const& params, CacheKind kind) {
  return check_sizes(params) == Status::kOk ? Workspace(params, kind).bytes : 0;
}

Status launch_cached(CachedParams const& params, cudaStream_t stream) {
  GRAPHOPT_TRY(check_sizes(params));
  if (params.batch == 0) return Status::kOk;
  size_t const size = element_size(params.dtype);
  GRAPHOPT_TRY(check_pointers(params, size));
  GRAPHOPT_TRY(copy_cache(params, params.head_size * static_cast<int64_t>(size), stream));
  if (params.seq == 0) return Status::kOk;
  return with_activation_type(params.dtype, [&](auto zero) { return launch_typed<decltype(zero)>(params, stream); });
}

}  // namespace graphopt::attention
