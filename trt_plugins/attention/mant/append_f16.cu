#include "attention/mant/launch_append.cuh"

namespace graphopt::attention {

template Status launch_mant_append<__half>(MantParams const&, Workspace const&, bool, cudaStream_t);
template Status launch_mant_expanded<__half>(MantArgs<__half> const&, MantParams const&, Workspace const&, bool,
                                         cudaStream_t);

}  // namespace graphopt::attention
