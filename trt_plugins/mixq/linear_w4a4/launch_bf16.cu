#include "mixq/linear_w4a4/launch.cuh"

namespace graphopt::mixq {

template Status launch_linear_w4a4_typed<__nv_bfloat16>(LinearW4A8Params const&, LinearW4A4Kernel, cudaStream_t);

}  // namespace graphopt::mixq
