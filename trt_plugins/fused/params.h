// A producer by itself, for readers that take 16-bit activations: one launch, inputs read and outputs written once.
//
//   y = T(producer(x, other, gamma, beta))
//
// float32 inside; what a norm normalizes is rounded to T first.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/producer.h"
#include "common/tensor.h"

namespace graphopt::fused {

/// Outputs must not overlap inputs or each other.
struct FusedParams {
  Producer producer;  // any but kPlain and those of a GLU
  DType dtype;        // T: kFloat32, kFloat16 or kBFloat16
  int64_t rows;       // 0 does nothing
  int64_t cols;       // K >= 1
  float epsilon;      // of a norm
  void const* x;      // [rows, K] T: input, or the gate
  void const* other;  // [rows, K] T: residual or up; null where the producer has one input
  void const* gamma;  // [K] T; null unless a norm
  void const* beta;   // [K] T; null unless a layer norm
  void* y;            // [rows, K] T
  void* sum;          // [rows, K] T: T(x + other) of an add producer; null: not written
};

Status launch_fused(FusedParams const& params, cudaStream_t stream);

}  // namespace graphopt::fused
