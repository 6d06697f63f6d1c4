#include "attention/cached/launch_sm90.cuh"

namespace graphopt::attention {

template Status launch_prefill_sm90<__nv_bfloat16>(AttentionArgs<__nv_bfloat16> const&, cudaStream_t);

}  // namespace graphopt::attention
