// Checks the arguments, makes the plan and dispatches on the element type.
#include "common/launch.h"
#include "fused/params.h"
#include "fused/policy.h"

namespace graphopt::fused {

template <class T>
Status launch_fused_typed(FusedParams const& params, FusedPlan const& plan, cudaStream_t stream);
extern template Status launch_fused_typed<float>(FusedParams const&, FusedPlan const&, cudaStream_t);
extern template Status launch_fused_typed<__half>(FusedParams const&, FusedPlan const&, cudaStream_t);
extern template Status launch_fused_typed<__nv_bfloat16>(FusedParams const&, FusedPlan const&, cudaStream_t);

namespace {

Status check(FusedParams const& p) {
  constexpr int64_t kMostRows = int64_t{1} << 30, kMostCols = int64_t{1} << 29;
  constexpr int64_t kMostElements = int64_t{1} << 40;  // blocks of the launch grid
  if (!is_known(p.producer) || is_glu(p.producer) || p.producer == Producer::kPlain) return Status::kBadOperation;
  if (!is_activation_type(p.dtype)) return Status::kBadType;
  if (p.rows < 0 || p.cols < 1) return Status::kBadShape;
  if (p.rows > kMostRows || p.cols > kMostCols || p.rows * p.cols > kMostElements) return Status::kTooLarge;
  if (p.rows == 0) return Status::kOk;
  size_t const size = element_size(p.dtype);
  GRAPHOPT_TRY(check_pointer(p.x, size));
  if (is_add(p.producer) || is_gated(p.producer)) GRAPHOPT_TRY(check_pointer(p.other, size));
  if (is_norm(p.producer)) GRAPHOPT_TRY(check_pointer(p.gamma, size));
  if (is_layer_norm(p.producer)) GRAPHOPT_TRY(check_pointer(p.beta, size));
  if (p.sum != nullptr) GRAPHOPT_TRY(check_pointer(p.sum, size));
  return check_pointer(p.y, size);
}

bool is_vector_aligned(FusedParams const& p) {
  constexpr size_t kVector = 16;
  for (void const* pointer : {p.x, p.other, p.gamma, p.beta, static_cast<void const*>(p.y),
                              static_cast<void const*>(p.sum)}) {
    if (!is_aligned(pointer, kVector)) return false;
  }
  return true;
}

}  // namespace

Status launch_fused(FusedParams const& params, cudaStream_t stream) {
  GRAPHOPT_TRY(check(params));
  if (params.rows == 0) return Status::kOk;
  int multiprocessors = 0;
  GRAPHOPT_TRY(multiprocessor_count(&multiprocessors));
  FusedProblem const problem{params.producer, params.rows, params.cols, static_cast<int>(element_size(params.dtype)),
                             is_vector_aligned(params)};
  FusedPlan const plan = plan_fused(problem, multiprocessors);
  return with_activation_type(params.dtype, [&](auto zero) {
    return launch_fused_typed<decltype(zero)>(params, plan, stream);
  });
}

}  // namespace graphopt::fused
