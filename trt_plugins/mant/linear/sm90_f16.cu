#include "mant/linear/sm90_folded_launch.cuh"

namespace graphopt::mant {

template Status launch_folded<FoldedFloat<__half>>(LinearParams const&, FoldedTables const&, int, cudaStream_t);

}  // namespace graphopt::mant
