// What all linear kernels share: their arguments.
#pragma once

#include <cstdint>

#include "mixq/common/outlier_mma.cuh"

namespace graphopt::mixq {

/// LinearParams with the element type known.
template <class T>
struct LinearArgs {
  int64_t m;
  int64_t n;
  int32_t k;
  int32_t capacity;
  int8_t const* __restrict__ xq;  // [M, K]
  float const* __restrict__ sx;   // [M]
  T const* __restrict__ xo;       // [M, C]
  int8_t const* __restrict__ wq;  // [N, K]
  float const* __restrict__ sw;   // [N]
  T const* __restrict__ wo;       // [N, C]
  T const* __restrict__ bias;     // [N]
  T const* __restrict__ residual; // [M, N] or null
  T* __restrict__ y;              // [M, N]
  int32_t prefetched;             // bytes of a row of W to bring into L2 early, a multiple of 16
};

}  // namespace graphopt::mixq
