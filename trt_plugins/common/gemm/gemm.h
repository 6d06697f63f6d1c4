// Matrix product of Hopper for weights that have been expanded to what tensor cores multiply.
//
//   y = T(sx sw (x w^T) + bias)
//
// int8 products are summed exactly in int32, others in float32; scales and bias are float32, rounded to T once.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/gemm/sm90_time.h"
#include "common/tensor.h"

namespace graphopt {

/// y must not overlap an input. All may be what the kernel before in the stream writes.
struct GemmParams {
  DType operands;    // of x and w: kInt8, kFloat16 or kBFloat16
  DType dtype;       // T: kFloat16 or kBFloat16
  int64_t m;         // M, tokens; 0 does nothing
  int64_t n;         // N, output channels
  int64_t k;         // K >= 1
  void const* x;     // [M, K]
  void const* w;     // [N, K]
  float const* sx;   // [M], or null: 1
  float const* sw;   // [N], or null: 1
  void const* bias;  // [N] T
  void* y;           // [M, N] T
  int64_t y_stride;  // elements from one row of y to the next, at least N
};

/// Whether there is a kernel for these types, and sizes and addresses suit the copy engine: rows of 16-byte multiples at
/// 16-byte addresses, N % 8 == 0.
bool supports_gemm(GemmParams const& p);

/// Enqueue y, which `p` must be supported for, on a Hopper GPU.
Status launch_gemm(GemmParams const& p, int multiprocessors, cudaStream_t stream);

/// Estimated microseconds of launch_gemm. Host code that shall not need CUDA calls gemm_time of sm90_time.h.
constexpr double gemm_time(int64_t m, int64_t n, int64_t k, DType operands, int multiprocessors) {
  return gemm_time(m, n, k, static_cast<int>(element_size(operands)), multiprocessors);
}

}  // namespace graphopt
