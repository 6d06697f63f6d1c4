// Launch of the M-ANT linear by weights that are written out.
#include "mant/linear/sm90_expand.h"

#include <algorithm>

#include "mant/linear/launch.cuh"
#include "mant/linear/sm90_expand.cuh"

namespace graphopt::mant {

namespace {

template <class Decoder>
Status write_slab(LinearArgs const& args, FoldedTables const& tables, int64_t first, int64_t rows, void* slab,
                  bool beside, cudaStream_t stream) {
  auto const kernel = beside ? expand_weights<Decoder, true> : expand_weights<Decoder, false>;
  dim3 const grid(static_cast<unsigned>(ceil_div(args.k, ExpandWarp<Decoder>::kColumns)),
                  static_cast<unsigned>(ceil_div<int64_t>(rows, kExpandRows)));
  return launch_at(Start::kEarly, kernel, grid, dim3(kExpandThreads), 0, stream, args, tables, first,
                   static_cast<int>(rows), static_cast<typename Decoder::X*>(slab));
}

/// The product of rows `first` to `first` + `rows`, which are in `slab`.
GemmParams rows_of(GemmParams product, int64_t first, int64_t rows, void const* slab) {
  int64_t const bytes = first * static_cast<int64_t>(element_size(product.dtype));
  product.n = rows;
  product.w = slab;
  if (product.sw != nullptr) product.sw += first;
  product.bias = static_cast<char const*>(product.bias) + bytes;
  product.y = static_cast<char*>(product.y) + bytes;
  return product;
}

}  // namespace

GemmParams expanded_product(LinearParams const& p, void const* x, FoldedTables const& tables, void* slab) {
  bool const float_x = p.decode == Decode::kFloat, bytes = p.decode == Decode::kBytes;
  return {expanded_type(p.decode, p.dtype), p.dtype, p.m, p.n, p.k, x, slab, float_x ? nullptr : p.sx,
          bytes ? tables.row_scale : nullptr, p.bias, p.y, p.n};
}

Status launch_expand(LinearParams const& p, FoldedTables const& tables, int64_t first, int64_t rows, void* slab,
                     bool beside, cudaStream_t stream) {
  DType const type = expanded_type(p.decode, p.dtype);
  auto const write = type == DType::kInt8      ? write_slab<ExpandBytes>
                     : type == DType::kFloat16 ? write_slab<ExpandFloat<__half>>
                                               : write_slab<ExpandFloat<__nv_bfloat16>>;
  return write(linear_args(p), tables, first, rows, slab, beside, stream);
}

Status launch_expanded(LinearParams const& p, void const* x, FoldedTables const& tables, void* slabs, int64_t slab_rows,
                       int multiprocessors, cudaStream_t stream) {
  GemmParams const product = expanded_product(p, x, tables, slabs);
  int const size = expanded_size(p.decode), turns = slab_turns(size, p.n, p.k, slab_rows);
  int64_t const bytes = slab_pitch(size, slab_rows, p.k);
  int turn = 0;
  for (int64_t first = 0; first < p.n; first += slab_rows, turn = turns - 1 - turn) {
    int64_t const rows = std::min(slab_rows, p.n - first);
    void* const slab = static_cast<char*>(slabs) + turn * bytes;
    GRAPHOPT_TRY(launch_expand(p, tables, first, rows, slab, /*beside=*/turns > 1 && first > 0, stream));
    GRAPHOPT_TRY(launch_gemm(rows_of(product, first, rows, slab), multiprocessors, stream));
  }
  return Status::kOk;
}

}  // namespace graphopt::mant
