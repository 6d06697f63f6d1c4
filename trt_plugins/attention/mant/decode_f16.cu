#include "attention/mant/launch_decode.cuh"

namespace graphopt::attention {

template Status launch_mant_decode<__half>(MantDecodeArgs<__half> const&, DeviceLimits const&, bool*, cudaStream_t);

}  // namespace graphopt::attention
