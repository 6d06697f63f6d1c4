#include "mant/linear/sm90_product.cuh"

namespace graphopt::mant {

template Status launch_product_beside<__half, __half, ExpandFloat<__half>>(GemmParams const&, ExpandBeside<ExpandFloat<__half>>::Args const&, int,
                                                     cudaStream_t);

}  // namespace graphopt::mant
