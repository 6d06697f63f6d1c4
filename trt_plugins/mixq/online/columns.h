// The outlier columns of a weight for a predicted set of channels:
//
//   columns[:, c] = wo[:, j]                    where set[c] = idx[j]: original
//                   T(sw wc[:, set[c]])         for other channels: dequantized
//                   0                           in padding
//
// They are kept from call to call, and a call only makes those whose channel is another one than in the call before.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/tensor.h"

namespace graphopt::mixq {

/// What a linear keeps in one execution context, in device memory; zeros at first.
struct ColumnsState {
  uint32_t* arrived;  // blocks that have made their rows
  int32_t* made;      // [capacity]: channel that a column is made for, + 2; 0: none yet
  void* columns;      // [n, capacity] T
  size_t bytes;

  /// The parts of the memory at `data`.
  ColumnsState(void* data, DType dtype, int64_t n, int64_t capacity);
};

/// Forget all columns.
Status launch_reset_columns(ColumnsState const& state, cudaStream_t stream);

/// The codes wc [N, K] are those of wq, or with wq4 wc[n, k] = sg[k / group, n] wq4[n, k] (common/packing.h).
struct ColumnsParams {
  DType dtype;         // T: kFloat32, kFloat16 or kBFloat16
  int64_t n;           // N
  int64_t k;           // K
  int64_t listed;      // C, size of idx
  int64_t capacity;    // C', size of set
  int64_t group;       // with wq4: columns that share an integer scale
  int8_t const* wq;    // [N, K], or null
  int8_t const* wq4;   // [N, packed_bytes(K)], or null
  int8_t const* sg;    // [ceil(K / group), N], with wq4
  float const* sw;     // [N]
  void const* wo;      // [N, C] T
  int32_t const* idx;  // [C], ascending, then -1
  int32_t const* set;  // [C'], ascending, then -1
};

/// Make state.columns those of params.set.
Status launch_columns(ColumnsParams const& params, ColumnsState const& state, cudaStream_t stream);

}  // namespace graphopt::mixq
