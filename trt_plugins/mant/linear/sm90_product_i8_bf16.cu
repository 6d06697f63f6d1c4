#include "mant/linear/sm90_product.cuh"

namespace graphopt::mant {

template Status launch_product_beside<int8_t, __nv_bfloat16, ExpandBytes>(GemmParams const&, ExpandBeside<ExpandBytes>::Args const&, int,
                                                     cudaStream_t);

}  // namespace graphopt::mant
