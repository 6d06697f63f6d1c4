#include "vq/linear/expand_launch.cuh"

namespace graphopt::vq {

template Status launch_expand_typed<__nv_bfloat16>(LinearParams const&, Slab const&, Device const&, cudaStream_t);

}  // namespace graphopt::vq
