#include "attention/vq/launch_decode.cuh"

namespace graphopt::attention {

template Status launch_vq_decode<__nv_bfloat16>(VqArgs<__nv_bfloat16> const&, DeviceLimits const&, bool*, cudaStream_t);

}  // namespace graphopt::attention
