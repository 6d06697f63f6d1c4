// Checks the arguments, picks the kernel and dispatches on the element type.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/launch.h"
#include "mixq/linear/params.h"
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

namespace {

constexpr int64_t kMaxTokens = int64_t{1} << 35;  // the launch grid's first dimension, times the smallest tile
constexpr int64_t kMaxOutliers = int64_t{1} << 20;

Status check(LinearW4A8Params const& p) {
  if (!is_activation_type(p.dtype)) return Status::kBadType;
  if (p.m < 0 || p.n < 1 || p.k < 1 || p.capacity < 16 || p.capacity % 16 != 0) return Status::kBadShape;
  if (p.group < 2 || p.group % 2 != 0) return Status::kBadShape;
  if (p.m > kMaxTokens || p.k > kMaxLinearK || p.capacity > kMaxOutliers) return Status::kTooLarge;
  if (p.m == 0) return Status::kOk;
  size_t const size = element_size(p.dtype);
  GRAPHOPT_TRY(check_pointer(p.xq, 1));
  GRAPHOPT_TRY(check_pointer(p.sx, sizeof(float)));
  GRAPHOPT_TRY(check_pointer(p.xo, size));
  GRAPHOPT_TRY(check_pointer(p.wq4, 1));
  GRAPHOPT_TRY(check_pointer(p.sg, 1));
  GRAPHOPT_TRY(check_pointer(p.sw, sizeof(float)));
  GRAPHOPT_TRY(check_pointer(p.wo, size));
  GRAPHOPT_TRY(check_pointer(p.bias, size));
  return check_pointer(p.y, size);
}

/// Whether the products can read vectors of 16 bytes that lie in one group.
bool products_vector_aligned(LinearW4A8Params const& p) {
  constexpr size_t kVector = 16;
  for (void const* pointer : {static_cast<void const*>(p.xq), p.xo, static_cast<void const*>(p.wq4), p.wo}) {
    if (!is_aligned(pointer, kVector)) return false;
  }
  return p.k % static_cast<int64_t>(kVector) == 0 && w4a8_group_shift(p.group, p.k) >= 0;
}

}  // namespace

Status launch_linear_w4a8(LinearW4A8Params const& params, cudaStream_t stream) {
  GRAPHOPT_TRY(check(params));
  if (params.m == 0) return Status::kOk;
  int multiprocessors = 0;
  GRAPHOPT_TRY(multiprocessor_count(&multiprocessors));
  bool const vectors = products_vector_aligned(params);
#ifdef GRAPHOPT_SM90A
  bool sm90 = false;
  GRAPHOPT_TRY(is_sm90(&sm90));
  if (sm90 && vectors && params.m >= kSm90W4LeastTokens && supports_sm90(params)) {
    Sm90W4Kernel const kernel = pick_sm90_w4(params.m, params.n, params.k, params.capacity, multiprocessors);
    auto const launch_typed =
        params.dtype == DType::kFloat16 ? launch_linear_w4a8_sm90<__half> : launch_linear_w4a8_sm90<__nv_bfloat16>;
    return launch_typed(params, kernel, multiprocessors, stream);
  }
#endif
  LinearW4A8Kernel const kernel = pick_linear_w4a8(params.m, params.n, vectors, multiprocessors);
  switch (params.dtype) {
    case DType::kFloat32:
      return launch_linear_w4a8_typed<float>(params, kernel, stream);
    case DType::kFloat16:
      return launch_linear_w4a8_typed<__half>(params, kernel, stream);
    case DType::kBFloat16:
      return launch_linear_w4a8_typed<__nv_bfloat16>(params, kernel, stream);
    default:
      return Status::kBadType;
  }
}

}  // namespace graphopt::mixq
