// MixQ quantizing ops: produce y, then quantize it per token with the outlier channels kept apart.
//
//   y  = T(producer(x, other, gamma, beta))
//   xm = y where the channel is not in idx, else 0
//   sx = max |xm| / 127,  xq = rint(xm * (127 / max |xm|)),  xo[c] = y[idx[c]]        (MixQ, SC'24, section 3)
//
// with 7 in place of 127 for codes of 4 bits.
//
// A row whose maximum is NaN or Inf gets that as its scale and codes of 0, so that everything computed from it is
// non-finite; other rows are untouched.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/packing.h"
#include "common/producer.h"
#include "common/tensor.h"

namespace graphopt::mixq {

/// Outputs must not overlap inputs or each other.
struct QuantizeParams {
  Producer producer;
  DType dtype;         // T: kFloat32, kFloat16 or kBFloat16
  int64_t rows;        // M, tokens; 0 does nothing
  int64_t cols;        // K >= 1, channels
  int64_t capacity;    // C >= 16, a multiple of 16
  void const* x;       // [M, K] T: input, or the gate; [M, 2 K] of a GLU: each row the gate, then up
  void const* other;   // [M, K] T: residual or up; null where the producer has one input
  void const* gamma;   // [K] T; null unless a norm
  void const* beta;    // [K] T; null unless a layer norm
  int32_t const* idx;  // [C]: outlier channels, strictly ascending, then -1
  float epsilon;       // of a norm
  int8_t* xq;          // [M, K], or [M, packed_bytes(K)]
  float* sx;           // [M]
  void* xo;            // [M, C] T
  void* sum;           // [M, K] T: T(x + other) of an add producer; null: not written
  void* y;             // [M, K] T; null: not written
  int32_t bits = 8;    // of a code, 8 or 4
  /// Null, or device memory where the kernel enqueued before leaves 0 if nothing is to be done.
  int32_t const* condition = nullptr;
  /// Whether that kernel may write idx. If not, reading it starts before that kernel has ended.
  bool idx_changes = false;
};

/// What launch_quantize would refuse, without launching anything.
Status check_quantize(QuantizeParams const& params);

Status launch_quantize(QuantizeParams const& params, cudaStream_t stream);

}  // namespace graphopt::mixq
