#include "attention/mant/launch_append.cuh"

namespace graphopt::attention {

template Status launch_mant_append<__nv_bfloat16>(MantParams const&, Workspace const&, bool, cudaStream_t);
template Status launch_mant_expanded<__nv_bfloat16>(MantArgs<__nv_bfloat16> const&, MantParams const&, Workspace const&,
                                         bool, cudaStream_t);

}  // namespace graphopt::attention
