#include "mixq/linear/launch.cuh"

namespace graphopt::mixq {

template Status launch_linear_typed<__half>(LinearParams const&, LinearKernel, cudaStream_t);

}  // namespace graphopt::mixq
