// Checks the arguments, picks the kernel and dispatches on the type of x.
#include <algorithm>

#include "mant/linear/kernel_generic.cuh"
#include "mant/linear/launch.cuh"
#include "mant/linear/sm90.h"
#include "mant/linear/sm90_expanded_policy.h"
#include "mant/linear/sm90_prepare.h"

namespace graphopt::mant {

extern template Status launch_linear_few<__half, FewCodes::kFloat>(LinearParams const&, LinearKernel, cudaStream_t);
extern template Status launch_linear_few<__nv_bfloat16, FewCodes::kFloat>(LinearParams const&, LinearKernel,
                                                                          cudaStream_t);
extern template Status launch_linear_few<__half, FewCodes::kSteps>(LinearParams const&, LinearKernel, cudaStream_t);
extern template Status launch_linear_few<__half, FewCodes::kPairs>(LinearParams const&, LinearKernel, cudaStream_t);

namespace {

Status launch_generic(LinearParams const& p, cudaStream_t stream) {
  constexpr int64_t kMaxGridY = 65535;
  int64_t const down = ceil_div<int64_t>(p.m, kGenericTile), across = ceil_div<int64_t>(p.n, kGenericTile);
  if (across > kMaxGridY) return Status::kTooLarge;
  dim3 const grid(static_cast<unsigned>(down), static_cast<unsigned>(across));
  auto const kernel = p.decode == Decode::kFloat ? linear_generic<float> : linear_generic<int32_t>;
  return launch(kernel, grid, dim3(kGenericThreads), 0, stream, linear_args(p));
}

}  // namespace

int64_t linear_workspace_bytes(Decode decode, int64_t m, int64_t n, int64_t k, int64_t groups) {
  if (m < kLeastMid || n < 1 || k < 1) return 0;
  int64_t const few = prepared_bytes(decode, std::min(m, kAlwaysMid), n, k, groups);
  if (m <= kAlwaysMid) return few;
  return std::max(few, slabs_bytes(expanded_size(decode), n, k) + prepared_bytes(decode, m, n, k, groups));
}

Status launch_linear(LinearParams const& params, cudaStream_t stream) {
  GRAPHOPT_TRY(check_linear(params));
  if (params.m == 0) return Status::kOk;
  bool const vectors = reads_vectors(params);
  int multiprocessors = 0;
  GRAPHOPT_TRY(multiprocessor_count(&multiprocessors));
#ifdef GRAPHOPT_SM90A
  bool sm90 = false;
  GRAPHOPT_TRY(is_sm90(&sm90));
  bool const mid = is_mid(params.decode, params.m) && (params.decode == Decode::kFloat || params.workspace != nullptr);
  if (sm90 && vectors && (mid || params.m > kMostFewTokens) && supports_sm90(params)) {
    return launch_linear_sm90(params, multiprocessors, stream);
  }
#endif
  LinearKernel const kernel = pick_linear(params.decode, params.m, params.n, vectors, multiprocessors);
  if (kernel == LinearKernel::kGeneric) return launch_generic(params, stream);
  if (params.decode != Decode::kFloat) {
    bool const steps = params.decode == Decode::kSplit && kernel == LinearKernel::kFew8;
    auto const launch_bytes =
        steps ? launch_linear_few<__half, FewCodes::kSteps> : launch_linear_few<__half, FewCodes::kPairs>;
    return launch_bytes(params, kernel, stream);
  }
  auto const launch_typed = params.dtype == DType::kFloat16 ? launch_linear_few<__half, FewCodes::kFloat>
                                                            : launch_linear_few<__nv_bfloat16, FewCodes::kFloat>;
  return launch_typed(params, kernel, stream);
}

}  // namespace graphopt::mant
