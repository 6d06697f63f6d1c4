#include "attention/mant/launch_decode.cuh"

namespace graphopt::attention {

template Status launch_mant_decode<__nv_bfloat16>(MantDecodeArgs<__nv_bfloat16> const&, DeviceLimits const&, bool*,
                                                  cudaStream_t);

}  // namespace graphopt::attention
