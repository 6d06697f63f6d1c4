// The two halves of a linear with online prediction: quantize, detect and quantize again; and the outlier columns that
// follow.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/op.h"
#include "mixq/online/columns.h"
#include "mixq/online/prediction.h"
#include "mixq/quantize/params.h"

namespace graphopt::mixq {

/// As QuantizeParams, except that xo is [M, capacity] and that `quantize.capacity` is the size of idx only.
struct QuantizeOnlineParams {
  QuantizeParams quantize;
  int64_t capacity;  // C', at least quantize.capacity, a multiple of 16
  float sigma;       // >= 0
  float sigma_rms;   // >= 0
  int32_t* set;      // [capacity]: the channels of xo
};

/// `state.data` is a PredictionState of these sizes.
Status launch_quantize_online(QuantizeOnlineParams const& params, OpState state, cudaStream_t stream);

}  // namespace graphopt::mixq
