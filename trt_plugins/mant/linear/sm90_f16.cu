#include "mant/linear/sm90_launch.cuh"

namespace graphopt::mant {

template Status launch_sm90_by<__half, Sm90Float<__half>>(LinearParams const&, int, cudaStream_t);

}  // namespace graphopt::mant
