#include "mant/linear/sm90_launch.cuh"

namespace graphopt::mant {

template Status launch_sm90_by<__nv_bfloat16, Sm90Float<__nv_bfloat16>>(LinearParams const&, int, cudaStream_t);

}  // namespace graphopt::mant
