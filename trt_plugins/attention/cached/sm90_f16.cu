#include "attention/cached/launch_sm90.cuh"

namespace graphopt::attention {

template Status launch_prefill_sm90<__half>(AttentionArgs<__half> const&, cudaStream_t);

}  // namespace graphopt::attention
