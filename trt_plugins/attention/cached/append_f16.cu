#include "attention/cached/launch_append.cuh"

namespace graphopt::attention {

template Status launch_append<__half>(CachedParams const&, Workspace const&, bool, cudaStream_t);
template Status launch_generic<__half>(AttentionArgs<__half> const&, cudaStream_t);

}  // namespace graphopt::attention
