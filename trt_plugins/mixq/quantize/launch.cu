// Checks the arguments, makes the plan and dispatches on the element type.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/launch.h"
#include "mixq/quantize/params.h"
#include "mixq/quantize/policy.h"

namespace graphopt::mixq {

template <class T>
Status launch_quantize_typed(QuantizeParams const& params, QuantizePlan const& plan, cudaStream_t stream);
extern template Status launch_quantize_typed<float>(QuantizeParams const&, QuantizePlan const&, cudaStream_t);
extern template Status launch_quantize_typed<__half>(QuantizeParams const&, QuantizePlan const&, cudaStream_t);
extern template Status launch_quantize_typed<__nv_bfloat16>(QuantizeParams const&, QuantizePlan const&, cudaStream_t);

namespace {

constexpr int64_t kMaxRows = int64_t{1} << 30;  // row numbers, plus a stride, are int32
constexpr int64_t kMaxCols = int64_t{1} << 29;  // column indices of two, plus a stride, are int32
constexpr int64_t kMaxCapacity = int64_t{1} << 20;

bool all_vector_aligned(QuantizeParams const& p) {
  constexpr size_t kVector = 16;
  for (void const* pointer : {p.x, p.other, p.gamma, p.beta, static_cast<void const*>(p.xq),
                              static_cast<void const*>(p.sum), static_cast<void const*>(p.y)}) {
    if (!is_aligned(pointer, kVector)) return false;
  }
  return true;
}

QuantizeProblem describe(QuantizeParams const& p) {
  return {p.rows,
          p.cols,
          p.capacity,
          static_cast<int>(element_size(p.dtype)),
          /*inputs=*/is_add(p.producer) || is_gated(p.producer) || is_glu(p.producer) ? 2 : 1,
          /*parameters=*/(is_norm(p.producer) ? 1 : 0) + (is_layer_norm(p.producer) ? 1 : 0),
          all_vector_aligned(p)};
}

Status describe_device(QuantizeDevice* result) {
  int device = 0, per_block = 0, per_multiprocessor = 0;
  GRAPHOPT_CUDA_TRY(cudaGetDevice(&device));
  GRAPHOPT_CUDA_TRY(cudaDeviceGetAttribute(&result->multiprocessors, cudaDevAttrMultiProcessorCount, device));
  GRAPHOPT_CUDA_TRY(cudaDeviceGetAttribute(&per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  GRAPHOPT_CUDA_TRY(cudaDeviceGetAttribute(&per_multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device));
  result->shared_per_block = per_block;
  result->shared_per_multiprocessor = per_multiprocessor;
  return Status::kOk;
}

}  // namespace

Status check_quantize(QuantizeParams const& p) {
  if (!is_known(p.producer)) return Status::kBadOperation;
  if (!is_activation_type(p.dtype)) return Status::kBadType;
  if (p.bits != 8 && p.bits != 4) return Status::kBadOperation;
  if (p.rows < 0 || p.cols < 1 || p.capacity < 16 || p.capacity % 16 != 0) return Status::kBadShape;
  if (p.rows > kMaxRows || p.cols > kMaxCols || p.capacity > kMaxCapacity) return Status::kTooLarge;
  if (p.rows == 0) return Status::kOk;
  size_t const size = element_size(p.dtype);
  GRAPHOPT_TRY(check_pointer(p.x, size));
  if (is_add(p.producer) || is_gated(p.producer)) GRAPHOPT_TRY(check_pointer(p.other, size));
  if (is_norm(p.producer)) GRAPHOPT_TRY(check_pointer(p.gamma, size));
  if (is_layer_norm(p.producer)) GRAPHOPT_TRY(check_pointer(p.beta, size));
  GRAPHOPT_TRY(check_pointer(p.idx, sizeof(int32_t)));
  GRAPHOPT_TRY(check_pointer(p.xq, 1));
  GRAPHOPT_TRY(check_pointer(p.sx, sizeof(float)));
  GRAPHOPT_TRY(check_pointer(p.xo, size));
  if (p.sum != nullptr) GRAPHOPT_TRY(check_pointer(p.sum, size));
  if (p.y != nullptr) GRAPHOPT_TRY(check_pointer(p.y, size));
  return Status::kOk;
}

Status launch_quantize(QuantizeParams const& params, cudaStream_t stream) {
  GRAPHOPT_TRY(check_quantize(params));
  if (params.rows == 0) return Status::kOk;
  QuantizeDevice device{};
  GRAPHOPT_TRY(describe_device(&device));
  QuantizePlan const plan = plan_quantize(describe(params), device);
  return with_activation_type(params.dtype, [&](auto zero) {
    return launch_quantize_typed<decltype(zero)>(params, plan, stream);
  });
}

}  // namespace graphopt::mixq
