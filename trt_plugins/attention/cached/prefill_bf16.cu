#include "attention/cached/launch_prefill.cuh"

namespace graphopt::attention {

template Status launch_prefill<__nv_bfloat16>(AttentionArgs<__nv_bfloat16> const&, cudaStream_t);

}  // namespace graphopt::attention
