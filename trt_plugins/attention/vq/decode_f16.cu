#include "attention/vq/launch_decode.cuh"

namespace graphopt::attention {

template Status launch_vq_decode<__half>(VqArgs<__half> const&, DeviceLimits const&, bool*, cudaStream_t);

}  // namespace graphopt::attention
