// M-ANT linears (HPCA'25): weights in groups of 4-bit codes, each group with a type of its own.
//
//   float   y = T(x w^T + bias),   w[n, k] = scale[g, n] table[type[g, n], code[n, k]],   g = k / group
//   split   y = T(sum over g of sx scale f ((a + 1) sum(xq s i) + sum(xq s (2^i - i))) + bias)
//   bytes   y = T(sum over g of sx scale / 128 sum(xq table[type, code]) + bias)
//
// where s and i are sign and magnitude index of a code, a belongs to its type, and f is 1 over the power of two not
// below 7 a + 128; type 15, INT4, is the first sum alone, times 1/8. Sums over a group are exact in int32 (float32
// where x is T); what comes after is float32, rounded to T once. Table values are exact in float16 and rounded in
// bfloat16. For more than 32 tokens on Hopper, weights are rounded once before the product, scale and all: float to T,
// split and up to 128 tokens of bytes to float16, more of bytes to 127ths of the largest of their row; into the workspace,
// a slab of rows of W after the other, where that is faster. Without a workspace, split and bytes stay exact.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/packing.h"
#include "common/tensor.h"

namespace graphopt::mant {

/// How codes become numbers.
enum class Decode : int32_t { kFloat = 0, kSplit = 1, kBytes = 2 };

/// Bytes of the numbers that codes become for many tokens.
constexpr int expanded_size(Decode decode) { return decode == Decode::kBytes ? 1 : 2; }

/// y must not overlap an input.
struct LinearParams {
  Decode decode;
  DType dtype;          // T: kFloat32, kFloat16 or kBFloat16
  int64_t m;            // M, tokens; 0 does nothing
  int64_t n;            // N >= 1, output channels
  int64_t k;            // K >= 1, input channels
  int64_t group;        // columns that share a type and a scale, a multiple of 32
  int64_t scales;       // S: columns of sx, 1 or ceil(K / group)
  void const* x;        // [M, K] T; int8 in -127..127 for kSplit and kBytes
  float const* sx;      // [M, S]; not for kFloat
  int8_t const* codes;  // [N, packed_bytes(K)]; columns beyond K mean nothing
  int8_t const* types;  // [ceil(K / group), packed_bytes(N)]
  void const* scale;    // [ceil(K / group), N] float16, not negative
  void const* table;    // [16, 16] by type and code: float16, or for kBytes int8, where codes 0..7 must not be negative
                        // and codes 8..15 not positive; not for kSplit
  void const* bias;     // [N] T
  void* y;              // [M, N] T
  void* workspace;      // linear_workspace_bytes, a multiple of 16, or null
};

/// Bytes of workspace that a linear of at most m tokens wants.
///   groups: ceil(K / group).
int64_t linear_workspace_bytes(Decode decode, int64_t m, int64_t n, int64_t k, int64_t groups);

Status launch_linear(LinearParams const& params, cudaStream_t stream);

}  // namespace graphopt::mant
