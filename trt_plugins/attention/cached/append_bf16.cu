#include "attention/cached/launch_append.cuh"

namespace graphopt::attention {

template Status launch_append<__nv_bfloat16>(CachedParams const&, Workspace const&, bool, cudaStream_t);
template Status launch_generic<__nv_bfloat16>(AttentionArgs<__nv_bfloat16> const&, cudaStream_t);

}  // namespace graphopt::attention
