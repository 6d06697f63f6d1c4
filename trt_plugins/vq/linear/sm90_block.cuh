// A block of the Hopper kernel: what it is given and takes of that, where it keeps it, and the warps that bring it.
#pragma once

#include <cstdint>

#include "common/hopper.cuh"
#include "common/sm90_grid.h"
#include "common/sm90_ring.cuh"
#include "common/vec.cuh"
#include "vq/linear/sm90_tile.h"
#include "vq/linear/sm90_vectors.cuh"

namespace graphopt::vq {

/// Operands of the kernel; lives in constant memory, where the copy engine wants its tensor maps.
template <class T>
struct Sm90Args {
  CUtensorMap x;            // [M, K] T
  CUtensorMap y;            // [M, N] T
  int8_t const* codes;      // [N, row_bytes]
  __half const* codebooks;  // null: the lattice
  float const* ratios;
  float const* scale;  // [N]
  T const* bias;       // [N]
  int32_t m;
  int32_t n;
  int32_t x_rows;  // brought into a stage; the rest of a stage belongs to tokens that are not stored
  int32_t stages;  // along K
  int32_t split;   // blocks of a cluster, which share K
  int32_t share;   // stages of each
  int32_t row_bytes;
  int32_t tile_rows;     // at least N where codebooks do not change
  int32_t tile_stages;   // stages that share codebooks; at least `stages` where all do
  int32_t tiles_across;  // tiles along K
  Sm90Grid grid;  // down: tiles of tokens; across: tiles of rows of W
};

/// What a block takes of K.
struct StageRange {
  int begin, end;

  template <class T>
  __device__ __forceinline__ static StageRange of(Sm90Args<T> const& args) {
    int const begin = static_cast<int>(blockIdx.x) % args.split * args.share;
    return {begin, min(begin + args.share, args.stages)};
  }
};

/// The tiles of a block; those of a cluster share theirs.
template <class Traits>
class SharedWalk {
 public:
  __device__ __forceinline__ explicit SharedWalk(Sm90Args<typename Traits::T> const& args)
      : args_(args), index_(static_cast<int>(blockIdx.x) / args.split) {}

  /// Whether there is another tile; then `token` and `row` are its first token and row of W.
  __device__ __forceinline__ bool next(int& token, int& row) {
    if (index_ >= args_.grid.clusters()) return false;
    Sm90Grid::Cell const cell = args_.grid.cell(index_);
    index_ += static_cast<int>(gridDim.x) / args_.split;
    token = cell.down * Traits::kTokens;
    row = cell.across * kSm90Rows;
    return true;
  }

 private:
  Sm90Args<typename Traits::T> const& args_;
  int index_;
};

/// Places in the block's shared memory.
template <class Traits>
struct Sm90Shared {
  using Stages = Ring<Traits::kStages, Traits::kStageBytes, 0>;

  uint32_t base, tables;

  __device__ __forceinline__ explicit Sm90Shared(uint32_t base)
      : base(base),
        tables((base + Traits::kBarrierOffset + Traits::kBarrierBytes + Traits::kAlignment - 1) / Traits::kAlignment *
               Traits::kAlignment) {}

  __device__ __forceinline__ Stages stages() const {
    return {tables + Traits::Weights::kSharedBytes, base + Traits::kBarrierOffset};
  }
  __device__ __forceinline__ uint32_t staging(int half, int buffer) const {
    return base + (2 * half + buffer) * Traits::kStoreBytes;
  }
  __device__ __forceinline__ uint32_t table(int buffer) const {
    return tables + buffer * Traits::Weights::kTableBytes;
  }
  __device__ __forceinline__ uint32_t table_full(int buffer) const {
    return stages().full(2 * Traits::kStages + buffer);
  }
  __device__ __forceinline__ uint32_t table_empty(int buffer) const { return table_full(2 + buffer); }
  /// Whether the words of a stage lie in the order of vectors.
  __device__ __forceinline__ uint32_t ordered(int stage) const { return table_full(4 + stage); }
  /// What readers of a stage wait for.
  __device__ __forceinline__ uint32_t ready(int stage) const {
    return Traits::kVectors ? ordered(stage) : stages().full(stage);
  }
  /// Where a warpgroup leaves its sums for another one.
  __device__ __forceinline__ uint32_t sums(int group, int half) const {
    return stages().base + (Traits::kSlots == 1 ? 0 : 2 * group + half) * Traits::kSlotBytes;
  }
};

/// One warp: bring the codes of the block's rows into L2, of a stage in which new lines of 128 bytes begin.
template <class Traits>
__device__ __forceinline__ void prefetch_codes(Sm90Args<typename Traits::T> const& args, int row, int stage, int end) {
  constexpr int kLine = 128, kStage = 4 * Traits::kWords;
  int const byte = stage * kStage;
  if (byte % kLine >= kStage || stage >= end || byte >= args.row_bytes) return;
#pragma unroll
  for (int i = 0; i < kSm90Rows; i += 32) {
    int const at = min(row + i + static_cast<int>(threadIdx.x) % 32, args.n - 1);
    prefetch_line(args.codes + int64_t{at} * args.row_bytes + byte);
  }
}

/// One warp: fill the ring for every tile of Y.
template <class Traits>
__device__ __forceinline__ void produce_x(Sm90Args<typename Traits::T> const& args, Sm90Shared<Traits> const& shared) {
  auto const stages = shared.stages();
  typename Sm90Shared<Traits>::Stages::Position at;
  StageRange const range = StageRange::of(args);
  SharedWalk<Traits> walk(args);
  bool first = true;
  int token, row;
  while (walk.next(token, row)) {
    if constexpr (Traits::kPrefetch > 0) {
      for (int i = 0; i < Traits::kPrefetch; ++i) prefetch_codes<Traits>(args, row, range.begin + i, range.end);
    }
    if (first) wait_for_predecessor();
    if (first) release_successor();
    first = false;
    for (int i = range.begin; i < range.end; ++i) {
      if (threadIdx.x == 0) {
        stages.acquire(at, args.x_rows * Traits::kRowBytes);
        tma_load(stages.x(at.stage), &args.x, stages.full(at.stage), i * Traits::kColumns, token);
      }
      if constexpr (Traits::kPrefetch > 0) {
        __syncwarp();
        prefetch_codes<Traits>(args, row, i + Traits::kPrefetch, range.end);
      }
      at.advance();
    }
  }
}

/// Where the codebooks of a tile of Y begin, and the next ones along K.
template <class Traits>
__device__ __forceinline__ __half const* books_of(Sm90Args<typename Traits::T> const& args, int row, int tile) {
  using Weights = typename Traits::Weights;
  return args.codebooks +
         (int64_t{row / args.tile_rows} * args.tiles_across + tile) * (Weights::kEntries * Weights::kEntryBytes / 2);
}

/// kLoaderThreads threads: bring the codebooks of every tile of W that the block meets, two of them at a time.
template <class Traits>
__device__ __forceinline__ void produce_books(Sm90Args<typename Traits::T> const& args,
                                              Sm90Shared<Traits> const& shared) {
  using Weights = typename Traits::Weights;
  typename Weights::template Loader<Traits::kLoaderThreads> loader(static_cast<int>(threadIdx.x) - 32);
  RingPosition<2> at;
  StageRange const range = StageRange::of(args);
  SharedWalk<Traits> walk(args);
  int token, row;
  while (walk.next(token, row)) {
    for (int tile = range.begin / args.tile_stages; tile * args.tile_stages < range.end; ++tile) {
      loader.load(books_of<Traits>(args, row, tile));
      mbarrier_wait(shared.table_empty(at.stage), at.parity ^ 1);
      loader.store(shared.table(at.stage));
      mbarrier_arrive(shared.table_full(at.stage));
      at.advance();
    }
  }
}

/// Each of three warps: put the words of every third stage into the order of vectors.
///   kParts: kVectorRows rows each, that a stage has.
template <class Traits, int kParts>
__device__ __forceinline__ void order_parts(Sm90Args<typename Traits::T> const& args,
                                            Sm90Shared<Traits> const& shared) {
  constexpr int kWarps = Traits::kLoaderThreads / 32;
  static_assert(Traits::kRowBytes == 128 && Traits::kStages % kWarps == 0);
  int const warp = static_cast<int>(threadIdx.x) / 32 - 1, lane = static_cast<int>(threadIdx.x) % 32;
  auto const stages = shared.stages();
  VectorRows<kParts> const rows(lane);
  typename Sm90Shared<Traits>::Stages::Position at;
  StageRange const range = StageRange::of(args);
  for (int i = 0; i < warp; ++i) at.advance();
  SharedWalk<Traits> walk(args);
  int token, row, skipped = warp;  // stages of a tile before this warp's first one
  while (walk.next(token, row)) {
    int i = range.begin + skipped;
#pragma unroll 1
    for (; i < range.end; i += kWarps) {
      mbarrier_wait(stages.full(at.stage), at.parity);
      rows.order(stages.x(at.stage));
      async_proxy_fence();
      __syncwarp();
      if (lane == 0) mbarrier_arrive(shared.ordered(at.stage));
#pragma unroll
      for (int w = 0; w < kWarps; ++w) at.advance();
    }
    skipped = i - range.end;
  }
}

/// The same of as many parts as there are tokens for.
template <class Traits>
__device__ __forceinline__ void order_vectors(Sm90Args<typename Traits::T> const& args,
                                              Sm90Shared<Traits> const& shared) {
  static_assert(Traits::kTokens == 64 || Traits::kTokens == 128);
  if constexpr (Traits::kTokens == 64) {
    if (args.x_rows <= kVectorRows) return order_parts<Traits, 1>(args, shared);
    if (args.x_rows <= 2 * kVectorRows) return order_parts<Traits, 2>(args, shared);
  }
  order_parts<Traits, Traits::kTokens / kVectorRows>(args, shared);
}

}  // namespace graphopt::vq
