// Checks the arguments, picks the kernel and dispatches on the element type.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/launch.h"
#include "mixq/linear/params.h"
#include "mixq/linear/policy.h"
#include "mixq/linear/sm90.h"

namespace graphopt::mixq {

template <class T>
Status launch_linear_typed(LinearParams const& p, LinearKernel kernel, cudaStream_t stream);
extern template Status launch_linear_typed<float>(LinearParams const&, LinearKernel, cudaStream_t);
extern template Status launch_linear_typed<__half>(LinearParams const&, LinearKernel, cudaStream_t);
extern template Status launch_linear_typed<__nv_bfloat16>(LinearParams const&, LinearKernel, cudaStream_t);
#ifdef GRAPHOPT_SM90A
extern template Status launch_linear_sm90<__half>(LinearParams const&, Sm90Kernel, int, cudaStream_t);
extern template Status launch_linear_sm90<__nv_bfloat16>(LinearParams const&, Sm90Kernel, int, cudaStream_t);
#endif

namespace {

constexpr int64_t kMaxRows = int64_t{1} << 35;  // the launch grid's first dimension, times the smallest tile
constexpr int64_t kMaxCapacity = int64_t{1} << 20;

Status check(LinearParams const& p) {
  if (!is_activation_type(p.dtype)) return Status::kBadType;
  if (p.m < 0 || p.n < 1 || p.k < 1 || p.capacity < 16 || p.capacity % 16 != 0) return Status::kBadShape;
  if (p.m > kMaxRows || p.k > kMaxLinearK || p.capacity > kMaxCapacity) return Status::kTooLarge;
  if (p.m == 0) return Status::kOk;
  size_t const size = element_size(p.dtype);
  GRAPHOPT_TRY(check_pointer(p.xq, 1));
  GRAPHOPT_TRY(check_pointer(p.sx, sizeof(float)));
  GRAPHOPT_TRY(check_pointer(p.xo, size));
  GRAPHOPT_TRY(check_pointer(p.wq, 1));
  GRAPHOPT_TRY(check_pointer(p.sw, sizeof(float)));
  GRAPHOPT_TRY(check_pointer(p.wo, size));
  GRAPHOPT_TRY(check_pointer(p.bias, size));
  if (p.residual != nullptr) GRAPHOPT_TRY(check_pointer(p.residual, size));
  return check_pointer(p.y, size);
}

bool products_vector_aligned(LinearParams const& p) {
  constexpr size_t kVector = 16;
  for (void const* pointer : {static_cast<void const*>(p.xq), p.xo, static_cast<void const*>(p.wq), p.wo}) {
    if (!is_aligned(pointer, kVector)) return false;
  }
  return p.k % static_cast<int64_t>(kVector) == 0;
}

}  // namespace

Status launch_linear(LinearParams const& params, cudaStream_t stream) {
  GRAPHOPT_TRY(check(params));
  if (params.m == 0) return Status::kOk;
  int multiprocessors = 0;
  GRAPHOPT_TRY(multiprocessor_count(&multiprocessors));
#ifdef GRAPHOPT_SM90A
  bool sm90 = false;
  GRAPHOPT_TRY(is_sm90(&sm90));
  if (sm90 && supports_sm90(params)) {
    Sm90Kernel const kernel = pick_sm90(params.m, params.n, params.k, params.capacity, multiprocessors);
    auto const launch_typed =
        params.dtype == DType::kFloat16 ? launch_linear_sm90<__half> : launch_linear_sm90<__nv_bfloat16>;
    if (kernel != Sm90Kernel::kSmallM) return launch_typed(params, kernel, multiprocessors, stream);
  }
#endif
  LinearKernel const kernel = pick_linear(params.m, params.n, products_vector_aligned(params), multiprocessors);
  return with_activation_type(params.dtype, [&](auto zero) {
    return launch_linear_typed<decltype(zero)>(params, kernel, stream);
  });
}

}  // namespace graphopt::mixq
