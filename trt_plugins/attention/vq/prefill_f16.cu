#include "attention/vq/launch_prefill.cuh"

namespace graphopt::attention {

template Status launch_vq_prefill<__half>(VqArgs<__half> const&, bool*, cudaStream_t);

}  // namespace graphopt::attention
