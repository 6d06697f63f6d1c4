#include "attention/vq/launch_prefill.cuh"

namespace graphopt::attention {

template Status launch_vq_prefill<__nv_bfloat16>(VqArgs<__nv_bfloat16> const&, bool*, cudaStream_t);

}  // namespace graphopt::attention
