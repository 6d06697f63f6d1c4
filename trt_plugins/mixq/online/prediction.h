// Online outlier prediction: quantize ahead of detection (MixQ, SC'24, section 4).
//
//   tau[m] = max(sigma, sigma_rms * sx[m] * sqrt(sum_k xq[m, k]^2 / K))
//   r[k]   = max over m of sx[m] |xq[m, k]| / tau[m]
//   set'   = set and the channels with r[k] > 1, the largest first, as far as the capacity goes; ascending, then -1
//
// from the codes that `set` gave. All of it runs on the device: `changed` tells the quantizing kernel, launched again,
// whether there is anything to do. A set only grows, so it changes no more often than its capacity.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/tensor.h"

namespace graphopt::mixq {

/// What a quantizing op keeps in one execution context, in device memory; zeros at first.
struct PredictionState {
  int32_t* ready;     // 1 once `set` is initialized
  int32_t* changed;   // 1: the last call extended `set`
  int32_t* found;     // 1: the call at hand met a channel that exceeds its threshold
  uint32_t* arrived;  // blocks that have looked at all their rows
  int32_t* set;       // [capacity]: the prediction for the next call
  uint32_t* excess;   // [cols]: bits of r[k] where it is above 1; zeros between calls
  size_t bytes;

  /// The parts of the memory at `data`.
  PredictionState(void* data, int64_t cols, int64_t capacity);
};

/// Make `idx` the set unless there is one already.
Status launch_init_prediction(PredictionState const& state, int32_t const* idx, int64_t listed, int64_t capacity,
                              cudaStream_t stream);

/// Forget everything, and make `idx` the set.
Status launch_reset_prediction(PredictionState const& state, int32_t const* idx, int64_t cols, int64_t listed,
                               int64_t capacity, cudaStream_t stream);

struct PredictionParams {
  int64_t rows;      // M
  int64_t cols;      // 1 <= K <= kMaxLinearK
  int64_t capacity;  // C >= 16, a multiple of 16
  float sigma;       // >= 0; 0: no such bound
  float sigma_rms;   // >= 0; 0: no such bound
  int8_t const* xq;  // [M, K]: codes that state.set gave
  float const* sx;   // [M]
  int32_t* set;      // [C]: state.set after the call
};

/// What launch_prediction would refuse, without launching anything.
Status check_prediction(PredictionParams const& params, PredictionState const& state);

/// Extend state.set by what exceeds its threshold.
Status launch_prediction(PredictionParams const& params, PredictionState const& state, cudaStream_t stream);

}  // namespace graphopt::mixq
