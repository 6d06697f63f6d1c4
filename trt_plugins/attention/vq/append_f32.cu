#include "attention/vq/launch_append.cuh"

namespace graphopt::attention {

template Status launch_encode<float>(VqParams const&, Workspace const&, bool, float*, bool*, cudaStream_t);
template Status launch_vq_expanded<float>(VqArgs<float> const&, VqParams const&, Workspace const&, bool, bool,
                                          cudaStream_t);

}  // namespace graphopt::attention
