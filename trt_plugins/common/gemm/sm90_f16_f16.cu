#include "common/gemm/sm90_gemm.cuh"

namespace graphopt {

template Status launch_gemm_typed<__half, __half>(GemmParams const&, int, cudaStream_t);

}  // namespace graphopt
