#include "fused/launch.cuh"

namespace graphopt::fused {

template Status launch_fused_typed<__half>(FusedParams const&, FusedPlan const&, cudaStream_t);

}  // namespace graphopt::fused
