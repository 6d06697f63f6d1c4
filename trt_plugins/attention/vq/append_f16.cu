#include "attention/vq/launch_append.cuh"

namespace graphopt::attention {

template Status launch_encode<__half>(VqParams const&, Workspace const&, bool, __half*, bool*, cudaStream_t);
template Status launch_vq_expanded<__half>(VqArgs<__half> const&, VqParams const&, Workspace const&, bool, bool,
                                           cudaStream_t);

}  // namespace graphopt::attention
