#include "mant/linear/launch.cuh"

namespace graphopt::mant {

template Status launch_linear_few<__half, FewCodes::kFloat>(LinearParams const&, LinearKernel, cudaStream_t);

}  // namespace graphopt::mant
