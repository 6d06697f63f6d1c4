// M-ANT linear by weights that are written out a slab at a time and multiplied by the Hopper matrix product.
#pragma once

#include "common/gemm/gemm.h"
#include "mant/linear/params.h"
#include "mant/linear/sm90_expanded_policy.h"
#include "mant/linear/sm90_prepare.h"

namespace graphopt::mant {

/// Type of the numbers that codes become.
constexpr DType expanded_type(Decode decode, DType dtype) {
  return decode == Decode::kBytes ? DType::kInt8 : decode == Decode::kSplit ? DType::kFloat16 : dtype;
}

/// The product of all rows of W, but for its rows' own operands, if it has the sizes and addresses of `p`.
///
/// Args:
///   x: [M, K] of expanded_type.
///   tables: of Decode::kBytes.
GemmParams expanded_product(LinearParams const& p, void const* x, FoldedTables const& tables, void* slab);

/// Enqueue y.
///
/// Args:
///   slab: `slab_rows` rows of W, which are a multiple of kSlabStep or all of them.
///   See expanded_product, whose product must be supported.
Status launch_expanded(LinearParams const& p, void const* x, FoldedTables const& tables, void* slab, int64_t slab_rows,
                       int multiprocessors, cudaStream_t stream);

/// Write `rows` rows of W from `first` on, a multiple of kSlabStep, to `slab`.
Status launch_expand(LinearParams const& p, FoldedTables const& tables, int64_t first, int64_t rows, void* slab,
                     cudaStream_t stream);

}  // namespace graphopt::mant
