#include "attention/vq/launch_append.cuh"

namespace graphopt::attention {

template Status launch_encode<__nv_bfloat16>(VqParams const&, Workspace const&, bool, __nv_bfloat16*, bool*,
                                             cudaStream_t);
template Status launch_vq_expanded<__nv_bfloat16>(VqArgs<__nv_bfloat16> const&, VqParams const&, Workspace const&, bool,
                                                  bool, cudaStream_t);

}  // namespace graphopt::attention
