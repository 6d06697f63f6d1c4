#include "mixq/linear/sm90_launch.cuh"

namespace graphopt::mixq {

template Status launch_linear_sm90<__half>(LinearParams const&, Sm90Kernel, int, cudaStream_t);

}  // namespace graphopt::mixq
