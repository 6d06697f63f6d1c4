// VQ-LLM linear: y = T(scale (x c^T) + bias), c the weight that the codes stand for.
//
//   trained codebooks   c[n, v j + e] = sum over i of codebooks[n / tile_rows, v j / tile_columns, i, code(n, j, i), e]
//   lattice E8          c[n, 8 j + e] = sum over i of ratios[i] e8(code(n, j, i))[e], b = 16, v = 8
//
// Codes are a little-endian stream of bits per row: code (j, i) takes the b bits from bit b (r j + i) on; rows are
// padded with zeros to whole 16-byte vectors. float32 sums, one rounding to T at the end. Where T has 16 bits, elements
// of c are rounded to T first, as in a linear whose weight is kept in T; codebooks are float16, so that for r = 1 and T
// = float16 this changes nothing.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/tensor.h"

namespace graphopt::vq {

constexpr int64_t kRowAlignment = 16;  // bytes of a row of codes are a multiple of it
constexpr int32_t kMostResiduals = 4;
constexpr int32_t kMostBits = 16;

/// Bytes of a row of codes.
__host__ __device__ constexpr int64_t row_bytes(int64_t k, int32_t vector, int32_t bits, int32_t residuals) {
  int64_t const total = (k + vector - 1) / vector * residuals * bits;
  return (total + 8 * kRowAlignment - 1) / (8 * kRowAlignment) * kRowAlignment;
}

/// y must not overlap an input.
struct LinearParams {
  DType dtype;            // T: kFloat32, kFloat16 or kBFloat16
  int64_t m;              // M, tokens; 0 does nothing
  int64_t n;              // N >= 1, output channels
  int64_t k;              // K >= 1, input channels
  int32_t vector;         // v: 2, 4, 8 or 16
  int32_t bits;           // b: 1 to 16
  int32_t residuals;      // r: 1 to 4
  int64_t tile_rows;      // output channels that share codebooks
  int64_t tile_columns;   // input channels that share codebooks, a multiple of v
  void const* x;          // [M, K] T
  int8_t const* codes;    // [N, row_bytes]
  void const* codebooks;  // [ceil(N / tile_rows), ceil(K / tile_columns), r, 2^b, v] float16; null: the lattice
  float const* ratios;    // [r], of the lattice
  float const* scale;     // [N]
  void const* bias;       // [N] T
  void* y;                // [M, N] T
  void* workspace;        // of linear_workspace_bytes, a multiple of 16; null: kernels that need one are not used

  __host__ __device__ bool lattice() const { return codebooks == nullptr; }
};

Status launch_linear(LinearParams const& params, cudaStream_t stream);

/// Bytes of scratch memory for a linear of these sizes with at most so many tokens. Looks at no pointers and no tiles.
size_t linear_workspace_bytes(LinearParams const& params);

}  // namespace graphopt::vq
