#include "attention/mant/launch_append.cuh"

namespace graphopt::attention {

template Status launch_mant_append<float>(MantParams const&, Workspace const&, bool, cudaStream_t);
template Status launch_mant_expanded<float>(MantArgs<float> const&, MantParams const&, Workspace const&, bool,
                                         cudaStream_t);

}  // namespace graphopt::attention
