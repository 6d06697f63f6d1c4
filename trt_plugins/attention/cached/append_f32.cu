#include "attention/cached/launch_append.cuh"

namespace graphopt::attention {

template Status launch_append<float>(CachedParams const&, Workspace const&, bool, cudaStream_t);
template Status launch_generic<float>(AttentionArgs<float> const&, cudaStream_t);

}  // namespace graphopt::attention
