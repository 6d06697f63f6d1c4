// MixQ linear on Hopper: wgmma fed by the copy engine, one persistent block per multiprocessor.
//
// Three warpgroups: the first brings tiles in, the other two multiply, each half of a tile of Y:
//
//     codes of K     ... | ... | ... |   int32 sums (wgmma s8)
//     y = sums sx sw                     in place: int32 and float32 sums have the same register layout
//     outliers of C  ... |               float32 sums (wgmma f16 or bf16) on the same registers
//     T(y + bias) -> shared memory -> copy engine
//
// Blocks of a cluster share rows of W: each brings its part of them to all.
#pragma once

#include <cstdint>

#include "common/sm90_convert.cuh"
#include "common/sm90_grid.h"
#include "mixq/linear/sm90_multiply.cuh"

namespace graphopt::mixq {

/// Operands of the kernel; lives in constant memory, where the copy engine wants its tensor maps.
template <class T>
struct Sm90Args {
  CUtensorMap xq;  // [M, K] int8
  CUtensorMap wq;  // [N, K] int8
  CUtensorMap xo;  // [M, C] T
  CUtensorMap wo;  // [N, C] T
  CUtensorMap y;   // [M, N] T
  float const* sx;  // [M]
  float const* sw;  // [N], a multiple of 16 bytes, as bias
  T const* bias;    // [N]
  int32_t m;
  int32_t n;
  int32_t prefetched;  // stages of a block's first tile whose W is brought into L2 early
  int32_t x_rows;      // brought into a stage; the rest of a stage belongs to rows that are not stored
  StageOrder<T> order;
  Sm90Grid grid;
};

/// Offsets into the block's shared memory.
template <class Traits>
struct Sm90Shared {
  using Stages = Ring<Traits::kStages, Traits::kXBytes, Traits::kWBytes>;

  uint32_t base;

  __device__ __forceinline__ Stages stages() const { return {base, base + Traits::kBarrierOffset}; }
  __device__ __forceinline__ uint32_t staging(int warpgroup, int buffer) const {
    return base + Traits::kStagingOffset + (2 * warpgroup + buffer) * Traits::kStoreBytes;
  }
  __device__ __forceinline__ uint32_t sw() const { return base + Traits::kVectorOffset; }
  __device__ __forceinline__ uint32_t bias() const { return sw() + Traits::kSwBytes; }
  __device__ __forceinline__ uint32_t vectors_full() const { return stages().full(2 * Traits::kStages); }
  __device__ __forceinline__ uint32_t vectors_empty() const { return vectors_full() + 8; }
};

/// The tiles of one block: those of its cluster, every `clusters`-th in the order of Sm90Grid.
template <class Tile>
class TileWalk {
 public:
  __device__ __forceinline__ explicit TileWalk(Sm90Grid const& grid)
      : grid_(grid), rank_(Tile::kCluster == 1 ? 0 : static_cast<int>(cluster_rank())),
        clusters_(static_cast<int>(gridDim.x) / Tile::kCluster),
        index_(static_cast<int>(blockIdx.x) / Tile::kCluster) {}

  /// Whether there is another tile; then `row` and `column` are its first ones in Y.
  __device__ __forceinline__ bool next(int& row, int& column) {
    if (index_ >= grid_.clusters()) return false;
    Sm90Grid::Cell const cell = grid_.cell(index_);
    index_ += clusters_;
    row = (cell.down * Tile::kCluster + rank_) * Tile::kRowsM;
    column = cell.across * Tile::kRowsN;
    return true;
  }

  __device__ __forceinline__ int rank() const { return rank_; }

 private:
  Sm90Grid const& grid_;
  int const rank_;
  int const clusters_;
  int index_;
};

/// Bring the tile's rows of W into a stage. Each block of the cluster brings its part to all of them.
template <class Tile>
__device__ __forceinline__ void load_w(uint32_t shared, CUtensorMap const* map, uint32_t barrier, int column, int row,
                                       int rank) {
  if constexpr (Tile::kCluster == 1) {
    tma_load(shared, map, barrier, column, row);
  } else {
    constexpr int kPart = Tile::kRowsN / Tile::kCluster;
    constexpr uint16_t kEveryone = (1 << Tile::kCluster) - 1;
    tma_load_multicast(shared + rank * kPart * kSwizzleBytes, map, barrier, column, row + rank * kPart, kEveryone);
  }
}

/// One thread: bring what the block loads first of W into L2.
template <class Tile, class Args>
__device__ __forceinline__ void prefetch_w(Args const& args) {
  TileWalk<Tile> walk(args.grid);
  int row, column;
  if (!walk.next(row, column)) return;
  int const part = walk.rank() * (Tile::kRowsN / Tile::kCluster);
  for (int i = 0; i < args.prefetched; ++i) tma_prefetch(&args.wq, args.order.column(i), column + part);
}

/// One thread: fill the ring for every tile of Y.
template <class T, class Traits>
__device__ __forceinline__ void produce_operands(Sm90Args<T> const& args, Sm90Shared<Traits> const& shared) {
  using Tile = typename Traits::Tile;
  TileWalk<Tile> walk(args.grid);
  auto const stages = shared.stages();
  RingPosition<Traits::kStages> at;
  uint32_t const bytes = args.x_rows * kStageRowBytes + Traits::kWBytes;
  int row, column;
  while (walk.next(row, column)) {
    for (int i = 0; i < args.order.tiles(); ++i, at.advance()) {
      bool const codes = args.order.is_codes(i);
      int const k = args.order.column(i);
      uint32_t const barrier = stages.full(at.stage);
      stages.acquire(at, bytes);
      tma_load(stages.x(at.stage), codes ? &args.xq : &args.xo, barrier, k, row);
      load_w<Tile>(stages.w(at.stage), codes ? &args.wq : &args.wo, barrier, k, column, walk.rank());
    }
  }
}

/// One thread: bring sw and bias of every tile's columns.
template <class T, class Traits>
__device__ __forceinline__ void produce_vectors(Sm90Args<T> const& args, Sm90Shared<Traits> const& shared) {
  using Tile = typename Traits::Tile;
  TileWalk<Tile> walk(args.grid);
  int row, column;
  for (uint32_t parity = 0; walk.next(row, column); parity ^= 1) {
    int const count = min(Tile::kRowsN, args.n - column);
    mbarrier_wait(shared.vectors_empty(), parity ^ 1);
    mbarrier_arrive_expect(shared.vectors_full(), count * (sizeof(float) + sizeof(T)));
    bulk_load(shared.sw(), args.sw + column, count * sizeof(float), shared.vectors_full());
    bulk_load(shared.bias(), args.bias + column, count * sizeof(T), shared.vectors_full());
  }
}

/// One warpgroup that multiplies: its half of every tile of Y.
template <class T, class Traits>
class Sm90Consumer {
 public:
  using Tile = typename Traits::Tile;
  using Product = Wgmma<Tile::kRowsN>;

  __device__ __forceinline__ Sm90Consumer(Sm90Args<T> const& args, Sm90Shared<Traits> const& shared, int warpgroup)
      : args_(args), shared_(shared), stages_(shared.stages()), warpgroup_(warpgroup) {}

  __device__ __forceinline__ void run() {
    TileWalk<Tile> walk(args_.grid);
    int row, column;
    while (walk.next(row, column)) {
      row += warpgroup_ * Traits::kRows;
      float sx[Traits::kBlocks][2];
      load_sx(sx, row);
      multiply(sum_, stages_, at_, args_.order.code_tiles, *this, [](auto& d, uint64_t x, uint64_t w, bool first) {
        Product::s8(d, x, w, !first);
      });
      mbarrier_wait(shared_.vectors_full(), vectors_parity_);
      vectors_parity_ ^= 1;
      scale(sx);
      multiply(sum_, stages_, at_, args_.order.outlier_tiles, *this, [](auto& d, uint64_t x, uint64_t w, bool) {
        Product::product(d, x, w, true, T{});
      });
      store(row, column);
      // Every lane, for its own reads: once a tile, and an order that compute-sanitizer can follow.
      mbarrier_arrive(shared_.vectors_empty());
    }
    if (is_leader()) bulk_wait_read<0>();
  }

  __device__ __forceinline__ uint32_t a(int stage) const {
    return stages_.x(stage) + warpgroup_ * Traits::kRows * kSwizzleBytes;
  }

  __device__ __forceinline__ uint32_t b(int stage) const { return stages_.w(stage); }

  /// Tell every block that writes to this stage that this warp has read it.
  __device__ __forceinline__ void release(int stage) const {
    if constexpr (Tile::kCluster == 1) {
      if (lane_ == 0) mbarrier_arrive(stages_.empty(stage));
    } else {
      if (lane_ < Tile::kCluster) mbarrier_arrive_at(stages_.empty(stage), lane_);
    }
  }

 private:
  __device__ __forceinline__ bool is_leader() const { return threadIdx.x % kWarpgroup == 0; }

  /// The scales of this thread's rows. Volatile, so that the loads start here and end under the products.
  __device__ __forceinline__ void load_sx(float (&sx)[Traits::kBlocks][2], int row) const {
#pragma unroll
    for (int i = 0; i < 2 * Traits::kBlocks; ++i) {
      int const at = row + i / 2 * kWgmmaRows + warp_ * 16 + lane_ / 4 + i % 2 * 8;
      sx[i / 2][i % 2] = at < args_.m ? load_early(args_.sx + at) : 0.0f;
    }
  }

  /// int32 sums -> float32 sums times sx sw, in place.
  __device__ __forceinline__ void scale(float const (&sx)[Traits::kBlocks][2]) {
#pragma unroll
    for (int j = 0; j < Tile::kRowsN / 8; ++j) {
      float sw[2];
      uint32_t const at = shared_.sw() + (8 * j + 2 * (lane_ % 4)) * sizeof(float);
      asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(sw[0]), "=f"(sw[1]) : "r"(at) : "memory");
#pragma unroll
      for (int b = 0; b < Traits::kBlocks; ++b) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          uint32_t& sum = sum_[b][4 * j + i];
          sum = __float_as_uint(__int2float_rn(static_cast<int32_t>(sum)) * (sx[b][i / 2] * sw[i % 2]));
        }
      }
    }
  }

  /// y = T(sums + bias), 64 rows of 128 bytes at a time, through two buffers of shared memory.
  __device__ __forceinline__ void store(int row, int column) {
#pragma unroll
    for (int b = 0; b < Traits::kBlocks; ++b) {
#pragma unroll
      for (int c = 0; c < Tile::kRowsN / Traits::kStoreCols; ++c) {
        if (is_leader()) bulk_wait_read<1>();
        warpgroup_sync(1 + warpgroup_);
        uint32_t const buffer = shared_.staging(warpgroup_, buffer_);
        stage_columns(sum_[b], c, buffer);
        async_proxy_fence();
        warpgroup_sync(1 + warpgroup_);
        if (is_leader()) {
          tma_store(&args_.y, buffer, column + c * Traits::kStoreCols, row + b * kWgmmaRows);
          bulk_commit();
        }
        buffer_ ^= 1;
      }
    }
  }

  /// Columns kStoreCols c.. of 64 rows, swizzled as the copy engine expects: chunk of 16 bytes ^ (row % 8).
  __device__ __forceinline__ void stage_columns(uint32_t const (&sum)[Traits::kSums], int c, uint32_t buffer) const {
    int const row = warp_ * 16 + lane_ % 16;
#pragma unroll
    for (int q = 0; q < Traits::kStoreCols / 16; ++q) {
      int const j = c * Traits::kStoreCols / 8 + 2 * q;
      uint32_t word[4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        uint32_t bits;
        uint32_t const at = shared_.bias() + (8 * (j + i) + 2 * (lane_ % 4)) * sizeof(T);
        asm volatile("ld.shared.u32 %0, [%1];" : "=r"(bits) : "r"(at) : "memory");
        float2 const bias = unpack(bits, T{});
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float const low = __uint_as_float(sum[4 * (j + i) + 2 * h]) + bias.x;
          float const high = __uint_as_float(sum[4 * (j + i) + 2 * h + 1]) + bias.y;
          word[2 * i + h] = pack(low, high, T{});
        }
      }
      int const chunk = 2 * q + lane_ / 16;
      stmatrix_x4(buffer + row * kSwizzleBytes + ((chunk ^ (lane_ % 8)) * 16), word[0], word[1], word[2], word[3]);
    }
  }

  Sm90Args<T> const& args_;
  Sm90Shared<Traits> const shared_;
  typename Sm90Shared<Traits>::Stages const stages_;
  int const warpgroup_;
  int const warp_ = static_cast<int>(threadIdx.x) / 32 % 4;
  int const lane_ = static_cast<int>(threadIdx.x) % 32;
  RingPosition<Traits::kStages> at_;
  uint32_t vectors_parity_ = 0;
  int buffer_ = 0;
  uint32_t sum_[Traits::kBlocks][Traits::kSums];
};

template <class T, class Tile>
__global__ void __launch_bounds__(Sm90Traits<T, Tile>::kThreads, 1)
    linear_sm90(__grid_constant__ Sm90Args<T> const args) {
  using Traits = Sm90Traits<T, Tile>;
  extern __shared__ __align__(1024) uint8_t memory[];
  Sm90Shared<Traits> const shared{shared_address(memory)};
  int const warp = static_cast<int>(threadIdx.x) / 32;
  bool const first_lane = threadIdx.x % 32 == 0;

  if (threadIdx.x == 0) {
    for (CUtensorMap const* map : {&args.xq, &args.wq, &args.xo, &args.wo, &args.y}) prefetch_tensor_map(map);
    shared.stages().init(Tile::kCluster * Traits::kReaderWarps);
    mbarrier_init(shared.vectors_full(), 1);
    mbarrier_init(shared.vectors_empty(), 32 * Traits::kReaderWarps);
    mbarrier_init_fence();
    prefetch_w<Tile>(args);
  }
  if constexpr (Tile::kCluster > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }
  wait_for_predecessor();
  release_successor();

  if (warp < kWarpgroup / 32) {
    release_registers<Traits::kProducerRegisters>();
    if (warp == 0 && first_lane) produce_operands(args, shared);
    if (warp == 1 && first_lane) produce_vectors(args, shared);
    __syncwarp();
  } else {
    claim_registers<Traits::kConsumerRegisters>();
    Sm90Consumer<T, Traits>(args, shared, warp / 4 - 1).run();
  }
  // A block's shared memory must outlive the arrivals of its peers.
  if constexpr (Tile::kCluster > 1) cluster_depart();
}

}  // namespace graphopt::mixq
