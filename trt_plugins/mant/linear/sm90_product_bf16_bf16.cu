#include "mant/linear/sm90_product.cuh"

namespace graphopt::mant {

template Status launch_product_beside<__nv_bfloat16, __nv_bfloat16, ExpandFloat<__nv_bfloat16>>(GemmParams const&, ExpandBeside<ExpandFloat<__nv_bfloat16>>::Args const&, int,
                                                     cudaStream_t);

}  // namespace graphopt::mant
