// What the Hopper matrix product takes, and dispatch on types.
#include "common/gemm/gemm.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/check.h"

namespace graphopt {

template <class X, class T>
Status launch_gemm_typed(GemmParams const& p, int multiprocessors, cudaStream_t stream);

namespace {

using Launch = Status (*)(GemmParams const&, int, cudaStream_t);

/// Null where there is no kernel for the types.
Launch find_launch(DType operands, DType dtype) {
  bool const half = dtype == DType::kFloat16;
  if (!half && dtype != DType::kBFloat16) return nullptr;
  switch (operands) {
    case DType::kInt8:
      return half ? launch_gemm_typed<int8_t, __half> : launch_gemm_typed<int8_t, __nv_bfloat16>;
    case DType::kFloat16:
      return half ? launch_gemm_typed<__half, __half> : launch_gemm_typed<__half, __nv_bfloat16>;
    case DType::kBFloat16:
      return half ? nullptr : launch_gemm_typed<__nv_bfloat16, __nv_bfloat16>;
    default:
      return nullptr;
  }
}

}  // namespace

bool supports_gemm(GemmParams const& p) {
  constexpr size_t kAlignment = 16;
  constexpr int64_t kVector = 16;
  constexpr int64_t kMaxRows = int64_t{1} << 30;  // row numbers, rounded up to clusters of tiles, are int32
  constexpr int64_t kMaxTiles = int64_t{1} << 30;
  constexpr int64_t kMaxIntegerK = 2147483647 / (127 * 127);  // sums of products fit int32
  for (void const* pointer : {p.x, p.w, static_cast<void const*>(p.sw), p.bias, static_cast<void const*>(p.y)}) {
    if (!is_aligned(pointer, kAlignment)) return false;
  }
  if (find_launch(p.operands, p.dtype) == nullptr || p.k < 1 || p.m > kMaxRows || p.n > kMaxRows) return false;
  if (p.k * static_cast<int64_t>(element_size(p.operands)) % kVector != 0 || p.k > kMaxRows) return false;
  if (p.operands == DType::kInt8 && p.k > kMaxIntegerK) return false;
  return p.n % 8 == 0 && p.y_stride % 8 == 0 && p.y_stride >= p.n &&
         tiles_along(p.m, 128) * tiles_along(p.n, 128) <= kMaxTiles;
}

Status launch_gemm(GemmParams const& p, int multiprocessors, cudaStream_t stream) {
  if (p.m == 0) return Status::kOk;
  Launch const launch = find_launch(p.operands, p.dtype);
  return launch == nullptr ? Status::kBadType : launch(p, multiprocessors, stream);
}

}  // namespace graphopt
