#include "mixq/linear_w4a8/sm90_launch.cuh"

namespace graphopt::mixq {

template Status launch_linear_w4a8_sm90<__half>(LinearW4A8Params const&, Sm90W4Kernel, int, cudaStream_t);

}  // namespace graphopt::mixq
