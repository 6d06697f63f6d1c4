// Checks the arguments, picks the kernel and dispatches on the element type.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/launch.h"
#include "mixq/linear_w4a8/check.h"
#include "mixq/linear_w4a8/params.h"
#include "mixq/linear_w4a8/policy.h"
#include "mixq/linear_w4a8/sm90.h"

namespace graphopt::mixq {

template <class T>
Status launch_linear_w4a8_typed(LinearW4A8Params const& p, LinearW4A8Kernel kernel, cudaStream_t stream);
extern template Status launch_linear_w4a8_typed<float>(LinearW4A8Params const&, LinearW4A8Kernel, cudaStream_t);
extern template Status launch_linear_w4a8_typed<__half>(LinearW4A8Params const&, LinearW4A8Kernel, cudaStream_t);
extern template Status launch_linear_w4a8_typed<__nv_bfloat16>(LinearW4A8Params const&, LinearW4A8Kernel, cudaStream_t);
#ifdef GRAPHOPT_SM90A
extern template Status launch_linear_w4a8_sm90<__half>(LinearW4A8Params const&, Sm90W4Kernel, int, cudaStream_t);
extern template Status launch_linear_w4a8_sm90<__nv_bfloat16>(LinearW4A8Params const&, Sm90W4Kernel, int,
                                                              cudaStream_t);
#endif

Status launch_linear_w4a8(LinearW4A8Params const& params, cudaStream_t stream) {
  GRAPHOPT_TRY(check_linear_w4a8(params));
  if (params.m == 0) return Status::kOk;
  int multiprocessors = 0;
  GRAPHOPT_TRY(multiprocessor_count(&multiprocessors));
  bool const vectors = products_read_vectors(params);
  bool few_tokens = false;
#ifdef GRAPHOPT_SM90A
  bool sm90 = false;
  GRAPHOPT_TRY(is_sm90(&sm90));
  if (sm90 && vectors && supports_sm90(params)) {
    Sm90W4Kernel const picked = pick_sm90_w4(params.m, params.n, params.k, params.capacity, multiprocessors);
    auto const launch_typed =
        params.dtype == DType::kFloat16 ? launch_linear_w4a8_sm90<__half> : launch_linear_w4a8_sm90<__nv_bfloat16>;
    if (picked != Sm90W4Kernel::kFewTokens) return launch_typed(params, picked, multiprocessors, stream);
    few_tokens = true;
  }
#endif
  LinearW4A8Kernel const kernel = pick_linear_w4a8(params.m, params.n, vectors, few_tokens, multiprocessors);
  return with_activation_type(params.dtype, [&](auto zero) {
    return launch_linear_w4a8_typed<decltype(zero)>(params, kernel, stream);
  });
}

}  // namespace graphopt::mixq
