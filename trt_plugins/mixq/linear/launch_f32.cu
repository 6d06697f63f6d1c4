#include "mixq/linear/launch.cuh"

namespace graphopt::mixq {

template Status launch_linear_typed<float>(LinearParams const&, LinearKernel, cudaStream_t);

}  // namespace graphopt::mixq
