#include "attention/cached/launch_decode.cuh"

namespace graphopt::attention {

template Status launch_decode<__half>(AttentionArgs<__half> const&, DeviceLimits const&, Start, cudaStream_t);

}  // namespace graphopt::attention
