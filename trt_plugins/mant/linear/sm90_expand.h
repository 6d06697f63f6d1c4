// M-ANT linear by weights that are written out a slab at a time and multiplied by the Hopper matrix product. Where two
// slabs have room, they take turns, so that multiprocessors that have no tile of the product, or no more, write the
// next one.
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
///   slabs: slab_turns of `slab_rows` rows of W, a multiple of kSlabStep or all, a slab_pitch apart.
///   See expanded_product, whose product must be supported.
Status launch_expanded(LinearParams const& p, void const* x, FoldedTables const& tables, void* slabs, int64_t slab_rows,
                       int multiprocessors, cudaStream_t stream);

/// Write `rows` rows of W from `first` on, a multiple of kSlabStep, to `slab`. beside: the kernel before, which has
/// waited for all that use this slab, may run until this one ends.
Status launch_expand(LinearParams const& p, FoldedTables const& tables, int64_t first, int64_t rows, void* slab,
                     bool beside, cudaStream_t stream);

}  // namespace graphopt::mant
