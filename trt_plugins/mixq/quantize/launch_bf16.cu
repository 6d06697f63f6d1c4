#include "mixq/quantize/launch.cuh"

namespace graphopt::mixq {

template Status launch_quantize_typed<__nv_bfloat16>(QuantizeParams const&, QuantizePlan const&, cudaStream_t);

}  // namespace graphopt::mixq
