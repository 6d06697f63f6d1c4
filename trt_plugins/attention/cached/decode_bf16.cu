#include "attention/cached/launch_decode.cuh"

namespace graphopt::attention {

template Status launch_decode<__nv_bfloat16>(AttentionArgs<__nv_bfloat16> const&, DeviceLimits const&, Start,
                                            cudaStream_t);

}  // namespace graphopt::attention
