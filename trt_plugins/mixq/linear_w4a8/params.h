// MixQ linear with 4-bit weights: int8 tensor cores for codes made on the way, 16-bit ones for the outlier channels.
//
//   y = T(sx sw (xq wc^T) + xo wo^T + bias [+ residual]),   wc[n, k] = sg[k / group, n] wq4[n, k]
//
// wc fits int8 (18 * 7 = 126), so that groups cost no accumulator of their own: integer products are summed exactly in
// int32, and the scaled sum, the outlier products, the bias and the residual meet in float32 and are rounded to T once.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/packing.h"
#include "common/tensor.h"

namespace graphopt::mixq {

/// y must not overlap an input.
struct LinearW4A8Params {
  DType dtype;        // T: kFloat32, kFloat16 or kBFloat16
  int64_t m;          // M, tokens; 0 does nothing
  int64_t n;          // N >= 1, output channels
  int64_t k;          // 1 <= K <= kMaxLinearK, input channels
  int64_t capacity;   // C >= 16, a multiple of 16
  int64_t group;      // columns that share an integer scale, even
  int8_t const* xq;   // [M, K], 0 in outlier channels
  float const* sx;    // [M]
  void const* xo;     // [M, C] T
  int8_t const* wq4;  // [N, packed_bytes(K)], codes in -7..7, 0 in outlier channels and in padding
  int8_t const* sg;   // [ceil(K / group), N], in 1..18
  float const* sw;    // [N]
  void const* wo;     // [N, C] T
  void const* bias;   // [N] T
  void const* residual;  // [M, N] T, or null
  void* y;            // [M, N] T
};

Status launch_linear_w4a8(LinearW4A8Params const& params, cudaStream_t stream);

}  // namespace graphopt::mixq
