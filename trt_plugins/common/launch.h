// Host side of a kernel launch.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <utility>

#include "common/check.h"
#include "common/tensor.h"

namespace graphopt {

template <class Integer>
constexpr Integer ceil_div(Integer a, Integer b) {
  return (a + b - 1) / b;
}

/// work(T{}) for the activation type T.
template <class Work>
Status with_activation_type(DType type, Work&& work) {
  switch (type) {
    case DType::kFloat32:
      return work(float{});
    case DType::kFloat16:
      return work(__half{});
    case DType::kBFloat16:
      return work(__nv_bfloat16{});
    default:
      return Status::kBadType;
  }
}

/// Streaming multiprocessors of the current device.
inline Status multiprocessor_count(int* count) {
  int device = 0;
  GRAPHOPT_CUDA_TRY(cudaGetDevice(&device));
  GRAPHOPT_CUDA_TRY(cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device));
  return Status::kOk;
}

/// Bytes of shared memory that a thread block of the current device may have at most.
inline Status shared_memory_per_block(int* bytes) {
  int device = 0;
  GRAPHOPT_CUDA_TRY(cudaGetDevice(&device));
  GRAPHOPT_CUDA_TRY(cudaDeviceGetAttribute(bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return Status::kOk;
}

/// Compute capability of the current device.
inline Status compute_capability(int* major, int* minor) {
  int device = 0;
  GRAPHOPT_CUDA_TRY(cudaGetDevice(&device));
  GRAPHOPT_CUDA_TRY(cudaDeviceGetAttribute(major, cudaDevAttrComputeCapabilityMajor, device));
  GRAPHOPT_CUDA_TRY(cudaDeviceGetAttribute(minor, cudaDevAttrComputeCapabilityMinor, device));
  return Status::kOk;
}

/// Whether the current device is a Hopper GPU, the only one that runs sm_90a code.
inline Status is_sm90(bool* found) {
  int major = 0, minor = 0;
  GRAPHOPT_TRY(compute_capability(&major, &minor));
  *found = major == 9 && minor == 0;
  return Status::kOk;
}

/// Whether a kernel may start before its predecessor has ended; if so, it must call wait_for_predecessor (ptx.cuh)
/// before it touches memory. Saves the time of a launch where the device can do that.
enum class Start { kInOrder, kEarly };

/// Let `kernel` have `shared_bytes` of dynamic shared memory. Where that is above what it may have, its limit becomes the
/// highest that the device allows: threads of the host that launch it with different sizes must not lower it for each other.
inline Status allow_shared(void const* kernel, size_t shared_bytes) {
  // The 48 KB that nobody need ask for hold static arrays, too; no kernel that has both kinds has 16 KB of those.
  constexpr size_t kNeverRefused = 32 * 1024;
  if (shared_bytes <= kNeverRefused) return Status::kOk;
  cudaFuncAttributes attributes{};
  GRAPHOPT_CUDA_TRY(cudaFuncGetAttributes(&attributes, kernel));
  if (shared_bytes <= static_cast<size_t>(attributes.maxDynamicSharedSizeBytes)) return Status::kOk;
  int most = 0;
  GRAPHOPT_TRY(shared_memory_per_block(&most));
  int const highest = most - static_cast<int>(attributes.sharedSizeBytes);
  return cuda_status(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, highest));
}

/// Launch `kernel` with `shared_bytes` of dynamic shared memory.
/// cudaLaunchKernelEx reports its own error, so an earlier error of somebody else's is neither read nor cleared.
template <class... Params, class... Args>
Status launch_at(Start start, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
                 cudaStream_t stream, Args&&... args) {
  GRAPHOPT_TRY(allow_shared(reinterpret_cast<void const*>(kernel), shared_bytes));
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
#ifdef GRAPHOPT_SM90A  // without code for it, the GPU runs older code, which cannot wait
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  if (start == Start::kEarly) {
    bool sm90 = false;
    GRAPHOPT_TRY(is_sm90(&sm90));
    config.attrs = &attribute;
    config.numAttrs = sm90 ? 1 : 0;
  }
#else
  static_cast<void>(start);
#endif
  return cuda_status(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...));
}

/// The same after everything enqueued before.
template <class... Params, class... Args>
Status launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
              Args&&... args) {
  return launch_at(Start::kInOrder, kernel, grid, block, shared_bytes, stream, std::forward<Args>(args)...);
}

}  // namespace graphopt
