#include "mixq/linear/launch.cuh"

namespace graphopt::mixq {

template Status launch_linear_typed<__nv_bfloat16>(LinearParams const&, LinearKernel, cudaStream_t);

}  // namespace graphopt::mixq
