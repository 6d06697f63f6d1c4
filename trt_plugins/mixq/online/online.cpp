#include "mixq/online/online.h"

namespace graphopt::mixq {

Status launch_quantize_online(QuantizeOnlineParams const& p, OpState state, cudaStream_t stream) {
  QuantizeParams quantize = p.quantize;
  int64_t const listed = quantize.capacity;
  GRAPHOPT_TRY(check_quantize(quantize));
  if (p.capacity < listed) return Status::kBadShape;
  PredictionState const prediction(state.data, quantize.cols, p.capacity);
  PredictionParams const detect{
      quantize.rows, quantize.cols, p.capacity, p.sigma, p.sigma_rms, quantize.xq, quantize.sx, p.set};
  GRAPHOPT_TRY(check_prediction(detect, prediction));
  if (state.fresh) {
    GRAPHOPT_TRY(launch_init_prediction(prediction, quantize.idx, listed, p.capacity, stream));
  }
  quantize.capacity = p.capacity;
  quantize.idx = prediction.set;
  quantize.idx_changes = true;
  GRAPHOPT_TRY(launch_quantize(quantize, stream));
  GRAPHOPT_TRY(launch_prediction(detect, prediction, stream));
  quantize.condition = prediction.changed;
  return launch_quantize(quantize, stream);
}

}  // namespace graphopt::mixq
