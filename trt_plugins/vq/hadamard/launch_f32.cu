#include "vq/hadamard/launch.cuh"

namespace graphopt::vq {

template Status launch_hadamard_typed<float>(HadamardParams const&, HadamardPlan const&, int64_t, cudaStream_t);

}  // namespace graphopt::vq
