// Randomized Hadamard transform of what a producer makes, in one launch:
//
//   y = T(producer(x, other, gamma, beta))
//   z = T((y padded with zeros * signs) H / sqrt(block))
//
// H is block-diagonal, element (i, j) of a block being -1 to the number of common bits of i and j (QuIP, 2023). float32
// inside, one rounding to T at the end of each line.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/producer.h"
#include "common/tensor.h"

namespace graphopt::vq {

constexpr int64_t kMostHadamardBlock = 65536;

/// Outputs must not overlap inputs or each other.
struct HadamardParams {
  Producer producer;    // any but those of a GLU
  DType dtype;          // T: kFloat32, kFloat16 or kBFloat16
  int64_t rows;         // 0 does nothing
  int64_t k;            // K >= 1
  int64_t channels;     // K' >= K, a multiple of block
  int64_t block;        // a power of two, at most kMostHadamardBlock
  float epsilon;        // of a norm
  void const* x;        // [rows, K] T: input, or the gate
  void const* other;    // [rows, K] T: residual or up; null where the producer has one input
  void const* gamma;    // [K] T; null unless a norm
  void const* beta;     // [K] T; null unless a layer norm
  int8_t const* signs;  // [K'], 1 or -1
  void* z;              // [rows, K'] T
  void* sum;            // [rows, K] T: T(x + other) of an add producer; null: not written
  void* y;              // [rows, K] T; null: not written
};

Status launch_hadamard(HadamardParams const& params, cudaStream_t stream);

}  // namespace graphopt::vq
