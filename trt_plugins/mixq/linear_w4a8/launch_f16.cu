#include "mixq/linear_w4a8/launch.cuh"

namespace graphopt::mixq {

template Status launch_linear_w4a8_typed<__half>(LinearW4A8Params const&, LinearW4A8Kernel, cudaStream_t);

}  // namespace graphopt::mixq
