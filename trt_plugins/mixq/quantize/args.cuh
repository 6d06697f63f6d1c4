// QuantizeParams with its element type known, and the arithmetic that every kernel shares.
#pragma once

#include <cstdint>

#include "common/producer.cuh"

namespace graphopt::mixq {

template <class T>
struct QuantizeArgs {
  int32_t rows;                     // M
  int32_t cols;                     // K
  int32_t capacity;                 // C
  T const* __restrict__ x;          // [M, K], rows `stride` apart
  T const* __restrict__ other;      // [M, K], the same
  int32_t stride;                   // elements between rows of x and of other
  T const* __restrict__ gamma;      // [K]
  T const* __restrict__ beta;       // [K]
  int32_t const* __restrict__ idx;  // [C]
  int32_t const* condition;         // null, or where a 0 says that there is nothing to do
  bool idx_changes;                 // whether the kernel before may write idx
  float epsilon;
  bool ahead;               // whether a team reads its next row ahead
  float code_max;           // 127, or 7 where codes are packed
  int32_t row_bytes;        // of xq
  int8_t* __restrict__ xq;  // [M, row_bytes]
  float* __restrict__ sx;   // [M]
  T* __restrict__ xo;       // [M, C]
  T* __restrict__ sum;      // [M, K] or null
  T* __restrict__ y;        // [M, K] or null
};

}  // namespace graphopt::mixq
