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

constexpr int64_t kMaxCols = int64_t{1} << 30;  // column indices, plus a stride, are int32
constexpr int64_t kMaxCapacity = int64_t{1} << 20;

Status check(QuantizeParams const& p) {
  if (!is_known(p.producer)) return Status::kBadOperation;
  if (!is_activation_type(p.dtype)) return Status::kBadType;
  if (p.rows < 0 || p.cols < 1 || p.capacity < 16 || p.capacity % 16 != 0) return Status::kBadShape;
  if (p.cols > kMaxCols || p.capacity > kMaxCapacity) return Status::kTooLarge;
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

bool all_vector_aligned(QuantizeParams const& p) {
  constexpr size_t kVector = 16;
  for (void const* pointer : {p.x, p.other, p.gamma, p.beta, static_cast<void const*>(p.xq),
                              static_cast<void const*>(p.sum), static_cast<void const*>(p.y)}) {
    if (!is_aligned(pointer, kVector)) return false;
  }
  return true;
}

}  // namespace

Status launch_quantize(QuantizeParams const& params, cudaStream_t stream) {
  GRAPHOPT_TRY(check(params));
  if (params.rows == 0) return Status::kOk;
  int multiprocessors = 0;
  GRAPHOPT_TRY(multiprocessor_count(&multiprocessors));
  int const per_vector = static_cast<int>(16 / element_size(params.dtype));
  QuantizePlan const plan =
      plan_quantize(params.rows, params.cols, per_vector, all_vector_aligned(params), multiprocessors);
  switch (params.dtype) {
    case DType::kFloat32:
      return launch_quantize_typed<float>(params, plan, stream);
    case DType::kFloat16:
      return launch_quantize_typed<__half>(params, plan, stream);
    case DType::kBFloat16:
      return launch_quantize_typed<__nv_bfloat16>(params, plan, stream);
    default:
      return Status::kBadType;
  }
}

}  // namespace graphopt::mixq
