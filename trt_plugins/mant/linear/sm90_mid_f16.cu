#include "mant/linear/sm90_mid_launch.cuh"

namespace graphopt::mant {

template Status launch_mid<__half>(LinearParams const&, int, cudaStream_t);

}  // namespace graphopt::mant
