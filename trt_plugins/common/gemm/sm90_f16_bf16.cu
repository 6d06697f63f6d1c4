#include "common/gemm/sm90_gemm.cuh"

namespace graphopt {

template Status launch_gemm_typed<__half, __nv_bfloat16>(GemmParams const&, int, cudaStream_t);

}  // namespace graphopt
