// Launch of the kernel that expands a slab for one element type. expand_<type>.cu instantiate it.
#pragma once

#include <algorithm>

#include "common/launch.h"
#include "vq/linear/expand.h"
#include "vq/linear/kernel_expand.cuh"
#include "vq/linear/launch.h"

namespace graphopt::vq {

template <class Source>
Status launch_expand(LinearParams const& p, Slab const& slab, Device const& device, cudaStream_t stream) {
  constexpr int64_t kChunk = kExpandColumns;
  ExpandShape const shape = expand_shape(p, device.shared_bytes);
  int64_t const bytes = row_bytes(p.k, p.vector, p.bits, p.residuals);
  ExpandArgs args{};
  args.codes = p.codes + slab.first_row * bytes;
  args.codebooks = static_cast<__half const*>(p.codebooks);
  args.ratios = p.ratios;
  args.scale = p.scale + slab.first_row;
  args.factors = slab.factors;
  args.w = slab.w;
  args.first_row = static_cast<int32_t>(slab.first_row);
  args.rows = static_cast<int32_t>(slab.rows);
  args.chunks = static_cast<int32_t>(p.k / kChunk);
  args.row_bytes = static_cast<int32_t>(bytes);
  args.bits = p.bits;
  args.residuals = p.residuals;
  args.chunk_bits = static_cast<int32_t>(std::max(kChunk / p.vector, int64_t{1})) * p.residuals * p.bits;
  args.halved = p.vector > kChunk ? 1 : 0;
  args.copies = shape.copies;
  args.tile_rows = static_cast<int32_t>(std::min(p.tile_rows, p.n));
  args.tile_chunks = static_cast<int32_t>(ceil_div<int64_t>(std::min(p.tile_columns, p.k), kChunk));
  args.tiles_across = ceil_div(args.chunks, args.tile_chunks);
  int const down = (args.first_row + args.rows - 1) / args.tile_rows - args.first_row / args.tile_rows + 1;
  int const tiles = down * args.tiles_across, blocks = shape.per_multiprocessor * device.multiprocessors;
  args.parts = std::max(blocks / tiles, 1);
  args.units = tiles * args.parts;
  args.beside = slab.beside ? 1 : 0;
  return launch_at(Start::kEarly, expand<Source>, dim3(static_cast<unsigned>(std::min(args.units, blocks))),
                   dim3(static_cast<unsigned>(shape.threads)), static_cast<size_t>(shape.shared_bytes), stream, args);
}

template <class T, bool kShared>
Status launch_expand_books(LinearParams const& p, Slab const& slab, Device const& device, cudaStream_t stream) {
  if (p.vector == 2) return launch_expand<BookSource<T, 1, kShared>>(p, slab, device, stream);
  if (p.vector == 4) return launch_expand<BookSource<T, 2, kShared>>(p, slab, device, stream);
  return launch_expand<BookSource<T, 4, kShared>>(p, slab, device, stream);
}

template <class T>
Status launch_expand_typed(LinearParams const& p, Slab const& slab, Device const& device, cudaStream_t stream) {
  if (p.lattice() && p.residuals == 1) return launch_expand<LatticeSource<T, 1>>(p, slab, device, stream);
  if (p.lattice()) return launch_expand<LatticeSource<T, 2>>(p, slab, device, stream);
  bool const shared = expand_shape(p, device.shared_bytes).shared;
  return shared ? launch_expand_books<T, true>(p, slab, device, stream)
                : launch_expand_books<T, false>(p, slab, device, stream);
}

}  // namespace graphopt::vq
