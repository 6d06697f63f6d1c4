#include "mant/linear/sm90_launch.cuh"

namespace graphopt::mant {

template Status launch_exact<Sm90Split>(LinearParams const&, int, cudaStream_t);

}  // namespace graphopt::mant
