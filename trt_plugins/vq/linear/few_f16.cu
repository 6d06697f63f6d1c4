#include "vq/linear/launch_typed.cuh"

namespace graphopt::vq {

template Status launch_few_typed<__half>(LinearParams const&, Plan const&, cudaStream_t);

}  // namespace graphopt::vq
