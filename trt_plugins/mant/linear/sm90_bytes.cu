#include "mant/linear/sm90_folded_launch.cuh"
#include "mant/linear/sm90_launch.cuh"

namespace graphopt::mant {

template Status launch_exact<Sm90Bytes>(LinearParams const&, int, cudaStream_t);
template Status launch_folded<FoldedBytes>(LinearParams const&, FoldedTables const&, int, cudaStream_t);

}  // namespace graphopt::mant
