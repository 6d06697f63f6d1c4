#include "mixq/quantize/launch.cuh"

namespace graphopt::mixq {

template Status launch_quantize_typed<__half>(QuantizeParams const&, QuantizePlan const&, cudaStream_t);

}  // namespace graphopt::mixq
