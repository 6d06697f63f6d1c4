// MixQ linear: int8 tensor cores for the bulk, 16-bit (or TF32 x 3) ones for the outlier channels, in one launch.
//
//   y = T(sx sw (xq wq^T) + xo wo^T + bias [+ residual])                              (MixQ, SC'24, section 3)
//
// Integer products are summed exactly in int32; the scaled sum, the outlier products, the bias and the residual meet in
// float32 and are rounded to T once.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/tensor.h"

namespace graphopt::mixq {

/// The largest K whose sum of products of codes in [-127, 127] fits int32.
constexpr int64_t kMaxLinearK = 2147483647 / (127 * 127);

/// y must not overlap an input.
struct LinearParams {
  DType dtype;       // T: kFloat32, kFloat16 or kBFloat16
  int64_t m;         // M, tokens; 0 does nothing
  int64_t n;         // N >= 1, output channels
  int64_t k;         // 1 <= K <= kMaxLinearK, input channels
  int64_t capacity;  // C >= 16, a multiple of 16
  int8_t const* xq;  // [M, K], 0 in outlier channels
  float const* sx;   // [M]
  void const* xo;    // [M, C] T
  int8_t const* wq;  // [N, K], 0 in outlier channels
  float const* sw;   // [N]
  void const* wo;    // [N, C] T
  void const* bias;  // [N] T
  void const* residual;  // [M, N] T, or null
  void* y;           // [M, N] T
};

Status launch_linear(LinearParams const& params, cudaStream_t stream);

}  // namespace graphopt::mixq
