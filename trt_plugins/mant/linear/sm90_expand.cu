// Launch of the M-ANT linear by weights that are written out.
#include "mant/linear/sm90_expand.h"

#include <algorithm>

#include "mant/linear/launch.cuh"
#include "mant/linear/sm90_expand.cuh"

namespace graphopt::mant {
namespace {

template <class Decoder>
Status write_slab(LinearArgs const& args, FoldedTables const& tables, int64_t first, int64_t rows, void* slab,
                  cudaStream_t stream) {
  dim3 const grid(static_cast<unsigned>(ceil_div(args.k, ExpandWarp<Decoder>::kColumns)),
                  static_cast<unsigned>(ceil_div<int64_t>(rows, kExpandRows)));
  return launch_at(Start::kEarly, expand_weights<Decoder>, grid, dim3(kExpandThreads), 0, stream, args, tables, first,
                   static_cast<int>(rows), static_cast<typename Decoder::X*>(slab));
}

}  // namespace

GemmParams expanded_product(LinearParams const& p, void const* x, FoldedTables const& tables, void* slab) {
  bool const float_x = p.decode == Decode::kFloat, bytes = p.decode == Decode::kBytes;
  return {expanded_type(p.decode, p.dtype), p.dtype, p.m, p.n, p.k, x, slab, float_x ? nullptr : p.sx,
          bytes ? tables.row_scale : nullptr, p.bias, p.y, p.n};
}

Status launch_expanded(LinearParams const& p, void const* x, FoldedTables const& tables, void* slab, int64_t slab_rows,
                       int multiprocessors, cudaStream_t stream) {
  LinearArgs const args = linear_args(p);
  GemmParams product = expanded_product(p, x, tables, slab);
  auto const write = product.operands == DType::kInt8      ? write_slab<ExpandBytes>
                     : product.operands == DType::kFloat16 ? write_slab<ExpandFloat<__half>>
                                                           : write_slab<ExpandFloat<__nv_bfloat16>>;
  auto const* bias = static_cast<char const*>(p.bias);
  auto* y = static_cast<char*>(p.y);
  auto const size = static_cast<int64_t>(element_size(p.dtype));
  for (int64_t first = 0; first < p.n; first += slab_rows) {
    product.n = std::min(slab_rows, p.n - first);
    product.sw = tables.row_scale == nullptr ? nullptr : tables.row_scale + first;
    product.bias = bias + first * size;
    product.y = y + first * size;
    GRAPHOPT_TRY(write(args, tables, first, product.n, slab, stream));
    GRAPHOPT_TRY(launch_gemm(product, multiprocessors, stream));
  }
  return Status::kOk;
}

}  // namespace graphopt::mant
