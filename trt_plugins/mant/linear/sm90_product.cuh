// Launch of the product by a slab beside which the next one is written. sm90_product_<operands>_<T>.cu instantiate it, so
// that they compile in parallel.
#pragma once

#include "common/gemm/sm90_beside.cuh"
#include "mant/linear/sm90_beside.cuh"

namespace graphopt::mant {

template <class X, class T, class Decoder>
Status launch_product_beside(GemmParams const& p, typename ExpandBeside<Decoder>::Args const& next, int multiprocessors,
                             cudaStream_t stream) {
  return launch_gemm_beside<X, T, ExpandBeside<Decoder>>(p, next, multiprocessors, stream);
}

}  // namespace graphopt::mant
