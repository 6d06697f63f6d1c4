// Checks the arguments, makes the plan and dispatches on the element type.
#include "common/launch.h"
#include "vq/hadamard/params.h"
#include "vq/hadamard/policy.h"

namespace graphopt::vq {

template <class T>
Status launch_hadamard_typed(HadamardParams const& params, HadamardPlan const& plan, int64_t shared_per_block,
                             cudaStream_t stream);
extern template Status launch_hadamard_typed<float>(HadamardParams const&, HadamardPlan const&, int64_t, cudaStream_t);
extern template Status launch_hadamard_typed<__half>(HadamardParams const&, HadamardPlan const&, int64_t, cudaStream_t);
extern template Status launch_hadamard_typed<__nv_bfloat16>(HadamardParams const&, HadamardPlan const&, int64_t,
                                                            cudaStream_t);

namespace {

Status check(HadamardParams const& p) {
  constexpr int64_t kMostChannels = int64_t{1} << 30;
  if (!is_known(p.producer) || is_glu(p.producer)) return Status::kBadOperation;
  if (!is_activation_type(p.dtype)) return Status::kBadType;
  if (p.rows < 0 || p.k < 1 || p.channels < p.k || p.block < 1 || p.block > kMostHadamardBlock)
    return Status::kBadShape;
  if ((p.block & (p.block - 1)) != 0 || p.channels % p.block != 0) return Status::kBadShape;
  if (p.channels > kMostChannels) return Status::kTooLarge;
  if (p.rows == 0) return Status::kOk;
  size_t const size = element_size(p.dtype);
  GRAPHOPT_TRY(check_pointer(p.x, size));
  if (is_add(p.producer) || is_gated(p.producer)) GRAPHOPT_TRY(check_pointer(p.other, size));
  if (is_norm(p.producer)) GRAPHOPT_TRY(check_pointer(p.gamma, size));
  if (is_layer_norm(p.producer)) GRAPHOPT_TRY(check_pointer(p.beta, size));
  GRAPHOPT_TRY(check_pointer(p.signs, 1));
  if (p.sum != nullptr) GRAPHOPT_TRY(check_pointer(p.sum, size));
  if (p.y != nullptr) GRAPHOPT_TRY(check_pointer(p.y, size));
  return check_pointer(p.z, size);
}

bool is_vector_aligned(HadamardParams const& p) {
  constexpr size_t kVector = 16, kSigns = 8;
  for (void const* pointer : {p.x, p.other, p.gamma, p.beta, static_cast<void const*>(p.z),
                              static_cast<void const*>(p.sum), static_cast<void const*>(p.y)}) {
    if (!is_aligned(pointer, kVector)) return false;
  }
  return is_aligned(p.signs, kSigns);
}

}  // namespace

Status launch_hadamard(HadamardParams const& params, cudaStream_t stream) {
  GRAPHOPT_TRY(check(params));
  if (params.rows == 0) return Status::kOk;
  int shared = 0;
  GRAPHOPT_TRY(shared_memory_per_block(&shared));
  HadamardProblem const problem{
      params.producer, params.rows, params.k, params.channels, params.block, static_cast<int>(element_size(params.dtype)),
      is_vector_aligned(params)};
  HadamardPlan const plan = plan_hadamard(problem, shared);
  return with_activation_type(params.dtype, [&](auto zero) {
    return launch_hadamard_typed<decltype(zero)>(params, plan, shared, stream);
  });
}

}  // namespace graphopt::vq
