#include "vq/linear/sm90_typed.cuh"

namespace graphopt::vq {

template Status launch_sm90_typed<__nv_bfloat16>(LinearParams const&, Plan const&, cudaStream_t);

}  // namespace graphopt::vq
