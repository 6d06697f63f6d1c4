#include "attention/cached/launch_prefill.cuh"

namespace graphopt::attention {

template Status launch_prefill<__half>(AttentionArgs<__half> const&, cudaStream_t);

}  // namespace graphopt::attention
