#include "mant/linear/launch.cuh"

namespace graphopt::mant {

template Status launch_linear_few<__half, Decode::kSplit>(LinearParams const&, LinearKernel, cudaStream_t);

}  // namespace graphopt::mant
