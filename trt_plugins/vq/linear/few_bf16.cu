#include "vq/linear/launch_typed.cuh"

namespace graphopt::vq {

template Status launch_few_typed<__nv_bfloat16>(LinearParams const&, Plan const&, cudaStream_t);

}  // namespace graphopt::vq
