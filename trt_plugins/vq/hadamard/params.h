// Randomized Hadamard transform: y = T((x padded with zeros * signs) H / sqrt(block)), H block-diagonal, a block's
// element (i, j) being -1 to the number of common bits of i and j. float32 inside, one rounding to T at the end.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/tensor.h"

namespace graphopt::vq {

constexpr int64_t kMostHadamardBlock = 65536;

/// y must not overlap an input.
struct HadamardParams {
  DType dtype;          // T: kFloat32, kFloat16 or kBFloat16
  int64_t rows;         // 0 does nothing
  int64_t k;            // K >= 1
  int64_t channels;     // K' >= K, a multiple of block
  int64_t block;        // a power of two, at most kMostHadamardBlock
  void const* x;        // [rows, K] T
  int8_t const* signs;  // [K'], 1 or -1
  void* y;              // [rows, K'] T
};

Status launch_hadamard(HadamardParams const& params, cudaStream_t stream);

}  // namespace graphopt::vq
