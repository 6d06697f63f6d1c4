// MixQ linear on Hopper: wgmma fed by the copy engine, one persistent block per multiprocessor.
//
// Three warpgroups: the first brings tiles in, the other two multiply. A tile of X or W is 128 bytes of K wide, be it
// 128 int8 codes or 64 outlier channels, so one ring of stages carries first the codes, then the outliers:
//
//     codes of K     ... | ... | ... |   int32 sums (wgmma s8)
//     y = sums sx sw                     in place: int32 and float32 sums have the same register layout
//     outliers of C  ... |               float32 sums (wgmma f16 or bf16) on the same registers
//     T(y + bias) -> shared memory -> copy engine
//
// Blocks of a cluster share one operand: each brings its part of it to all of them.
#pragma once

#include <cstdint>

#include "common/hopper.cuh"
#include "common/vec.cuh"
#include "common/wgmma.cuh"
#include "mixq/linear/sm90_tile.h"

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
  int32_t code_tiles;     // along K
  int32_t outlier_tiles;  // along C
  Sm90Grid grid;
};

/// Position in the ring of stages: the parity is that of the phase being filled or read.
template <int kStages>
struct RingPosition {
  int stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }

  __device__ __forceinline__ void skip(int count) {
    int const end = stage + count;
    stage = end % kStages;
    parity ^= end / kStages % 2;
  }
};

/// Offsets into the block's shared memory.
template <class Traits>
struct Sm90Shared {
  uint32_t base;

  __device__ __forceinline__ uint32_t x(int stage) const { return base + stage * Traits::kStageBytes; }
  __device__ __forceinline__ uint32_t w(int stage) const { return x(stage) + Traits::kXBytes; }
  __device__ __forceinline__ uint32_t staging(int warpgroup, int buffer) const {
    return base + Traits::kStagingOffset + (2 * warpgroup + buffer) * Traits::kStoreBytes;
  }
  __device__ __forceinline__ uint32_t sw(int slot) const {
    return base + Traits::kVectorOffset + slot * Traits::kVectorBytes;
  }
  __device__ __forceinline__ uint32_t bias(int slot) const { return sw(slot) + Traits::kSwBytes; }
  __device__ __forceinline__ uint32_t full(int stage) const { return base + Traits::kBarrierOffset + 8 * stage; }
  __device__ __forceinline__ uint32_t empty(int stage) const { return full(Traits::kStages + stage); }
  __device__ __forceinline__ uint32_t vectors_full(int slot) const { return full(2 * Traits::kStages + slot); }
  __device__ __forceinline__ uint32_t vectors_empty(int slot) const { return vectors_full(Traits::kVectorSlots + slot); }
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
    row = (cell.down * Tile::kClusterM + (Tile::kClusterM > 1 ? rank_ : 0)) * Tile::kRowsM;
    column = (cell.across * Tile::kClusterN + (Tile::kClusterN > 1 ? rank_ : 0)) * Tile::kRowsN;
    return true;
  }

  __device__ __forceinline__ int rank() const { return rank_; }

 private:
  Sm90Grid const& grid_;
  int const rank_;
  int const clusters_;
  int index_;
};

/// Bring kRows rows of an operand into a stage. Each of kSharers blocks that need the same rows brings its part to all.
template <int kRows, int kSharers>
__device__ __forceinline__ void load_operand(uint32_t shared, CUtensorMap const* map, uint32_t barrier, int column,
                                             int row, int rank) {
  if constexpr (kSharers == 1) {
    tma_load(shared, map, barrier, column, row);
  } else {
    constexpr int kPart = kRows / kSharers;
    constexpr uint16_t kEveryone = (1 << kSharers) - 1;
    tma_load_multicast(shared + rank * kPart * kSwizzleBytes, map, barrier, column, row + rank * kPart, kEveryone);
  }
}

/// One thread: fill the ring with the tiles of codes, then of outliers, for every tile of Y.
template <class T, class Traits>
__device__ __forceinline__ void produce_operands(Sm90Args<T> const& args, Sm90Shared<Traits> const& shared) {
  using Tile = typename Traits::Tile;
  TileWalk<Tile> walk(args.grid);
  RingPosition<Traits::kStages> ring;
  int const tiles = args.code_tiles + args.outlier_tiles;
  int row, column;
  while (walk.next(row, column)) {
    for (int i = 0; i < tiles; ++i, ring.advance()) {
      bool const codes = i < args.code_tiles;
      int const at = codes ? i * kSwizzleBytes : (i - args.code_tiles) * (kSwizzleBytes / int{sizeof(T)});
      uint32_t const barrier = shared.full(ring.stage);
      mbarrier_wait(shared.empty(ring.stage), ring.parity ^ 1);
      mbarrier_arrive_expect(barrier, Traits::kStageBytes);
      load_operand<Tile::kRowsM, Tile::kClusterN>(shared.x(ring.stage), codes ? &args.xq : &args.xo, barrier, at, row,
                                                  walk.rank());
      load_operand<Tile::kRowsN, Tile::kClusterM>(shared.w(ring.stage), codes ? &args.wq : &args.wo, barrier, at,
                                                  column, walk.rank());
    }
  }
}

/// One thread: bring sw and bias of every tile's columns.
template <class T, class Traits>
__device__ __forceinline__ void produce_vectors(Sm90Args<T> const& args, Sm90Shared<Traits> const& shared) {
  using Tile = typename Traits::Tile;
  TileWalk<Tile> walk(args.grid);
  RingPosition<Traits::kVectorSlots> ring;
  int row, column;
  for (; walk.next(row, column); ring.advance()) {
    int const count = max(0, min(Tile::kRowsN, args.n - column));
    uint32_t const barrier = shared.vectors_full(ring.stage);
    mbarrier_wait(shared.vectors_empty(ring.stage), ring.parity ^ 1);
    mbarrier_arrive_expect(barrier, count * (sizeof(float) + sizeof(T)));
    if (count > 0) {
      bulk_load(shared.sw(ring.stage), args.sw + column, count * sizeof(float), barrier);
      bulk_load(shared.bias(ring.stage), args.bias + column, count * sizeof(T), barrier);
    }
  }
}

/// Two values of y as one word of T.
__device__ __forceinline__ uint32_t pack(float low, float high, __half) {
  __half2 const pair = __floats2half2_rn(low, high);
  return reinterpret_cast<uint32_t const&>(pair);
}

__device__ __forceinline__ uint32_t pack(float low, float high, __nv_bfloat16) {
  __nv_bfloat162 const pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<uint32_t const&>(pair);
}

__device__ __forceinline__ float2 unpack(uint32_t word, __half) {
  return __half22float2(reinterpret_cast<__half2 const&>(word));
}

__device__ __forceinline__ float2 unpack(uint32_t word, __nv_bfloat16) {
  return __bfloat1622float2(reinterpret_cast<__nv_bfloat162 const&>(word));
}

/// One warpgroup that multiplies: its half of every tile of Y, or every other tile.
template <class T, class Traits>
class Sm90Consumer {
 public:
  using Tile = typename Traits::Tile;
  using Product = Wgmma<Tile::kRowsN>;

  __device__ __forceinline__ Sm90Consumer(Sm90Args<T> const& args, Sm90Shared<Traits> const& shared, int warpgroup)
      : args_(args), shared_(shared), warpgroup_(warpgroup), first_row_(Tile::kPingPong ? 0 : warpgroup * Traits::kRows),
        slot_(Tile::kPingPong ? warpgroup : 0) {}

  __device__ __forceinline__ void run() {
    TileWalk<Tile> walk(args_.grid);
    int row, column;
    if (Tile::kPingPong && warpgroup_ == 1) leave_to_other(walk);
    while (walk.next(row, column)) {
      row += first_row_;
      float sx[Traits::kBlocks][2];
      load_sx(sx, row);
      bool const staggered = Tile::kStaggered && args_.code_tiles >= Traits::kMinStaggeredTiles;
      if (staggered && warpgroup_ == 1) warpgroup_await(kLagBarrier);
      multiply(args_.code_tiles, [&](auto& d, uint64_t x, uint64_t w, int i, int s) {
        if (staggered && warpgroup_ == 0 && i == Traits::kLag && s == 0) warpgroup_signal(kLagBarrier);
        Product::s8(d, x, w, i + s > 0);
      });
      mbarrier_wait(shared_.vectors_full(slot_), vectors_parity_);
      vectors_parity_ ^= 1;
      scale(sx);
      multiply(args_.outlier_tiles, [](auto& d, uint64_t x, uint64_t w, int, int) { Product::outliers(d, x, w, T{}); });
      store(row, column);
      if (lane_ == 0) mbarrier_arrive(shared_.vectors_empty(slot_));
      if (Tile::kPingPong) leave_to_other(walk);
    }
    if (is_leader()) bulk_wait_read<0>();
  }

 private:
  static constexpr int kLagBarrier = 1 + Traits::kConsumers;  // after __syncthreads and one barrier per warpgroup

  __device__ __forceinline__ bool is_leader() const { return threadIdx.x % kWarpgroup == 0; }

  __device__ __forceinline__ void leave_to_other(TileWalk<Tile>& walk) {
    int row, column;
    if (walk.next(row, column)) ring_.skip(args_.code_tiles + args_.outlier_tiles);
  }

  /// The scales of this thread's rows. Volatile, so that the loads start here and end under the products.
  __device__ __forceinline__ void load_sx(float (&sx)[Traits::kBlocks][2], int row) const {
#pragma unroll
    for (int i = 0; i < 2 * Traits::kBlocks; ++i) {
      int const at = row + i / 2 * kWgmmaRows + warp_ * 16 + lane_ / 4 + i % 2 * 8;
      sx[i / 2][i % 2] = 0.0f;
      if (at < args_.m) {
        asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(sx[i / 2][i % 2]) : "l"(args_.sx + at));
      }
    }
  }

  /// Add the products of `tiles` stages. One group of products stays in flight while the next is issued.
  template <class Step>
  __device__ __forceinline__ void multiply(int tiles, Step step) {
    int previous = 0;
#pragma unroll
    for (int b = 0; b < Traits::kBlocks; ++b) wgmma_pin(sum_[b]);
#pragma unroll 1
    for (int i = 0; i < tiles; ++i) {
      mbarrier_wait(shared_.full(ring_.stage), ring_.parity);
      uint64_t const x = wgmma_descriptor(shared_.x(ring_.stage) + first_row_ * kSwizzleBytes);
      uint64_t const w = wgmma_descriptor(shared_.w(ring_.stage));
      wgmma_fence();
#pragma unroll
      for (int s = 0; s < kSwizzleBytes / kWgmmaStepBytes; ++s) {
#pragma unroll
        for (int b = 0; b < Traits::kBlocks; ++b) {
          uint64_t const step_offset = s * kWgmmaStepBytes / 16;
          step(sum_[b], x + b * (kWgmmaRows * kSwizzleBytes / 16) + step_offset, w + step_offset, i, s);
        }
      }
      wgmma_commit();
      wgmma_wait<1>();
      if (i > 0) release(previous);
      previous = ring_.stage;
      ring_.advance();
    }
    wgmma_wait<0>();
    release(previous);
#pragma unroll
    for (int b = 0; b < Traits::kBlocks; ++b) wgmma_pin(sum_[b]);
  }

  /// Tell every block that writes to this stage that this warp has read it.
  __device__ __forceinline__ void release(int stage) const {
    if constexpr (Tile::kCluster == 1) {
      if (lane_ == 0) mbarrier_arrive(shared_.empty(stage));
    } else {
      if (lane_ < Tile::kCluster) mbarrier_arrive_at(shared_.empty(stage), lane_);
    }
  }

  /// int32 sums -> float32 sums times sx sw, in place.
  __device__ __forceinline__ void scale(float const (&sx)[Traits::kBlocks][2]) {
#pragma unroll
    for (int j = 0; j < Tile::kRowsN / 8; ++j) {
      float sw[2];
      uint32_t const at = shared_.sw(slot_) + (8 * j + 2 * (lane_ % 4)) * sizeof(float);
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
        uint32_t const at = shared_.bias(slot_) + (8 * (j + i) + 2 * (lane_ % 4)) * sizeof(T);
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
  int const warpgroup_;
  int const first_row_;  // of its part of a tile
  int const slot_;       // of its vectors
  int const warp_ = static_cast<int>(threadIdx.x) / 32 % 4;
  int const lane_ = static_cast<int>(threadIdx.x) % 32;
  RingPosition<Traits::kStages> ring_;
  uint32_t vectors_parity_ = 0;
  int buffer_ = 0;
  uint32_t sum_[Traits::kBlocks][Traits::kSums];
};

template <class T, class Tile>
__global__ void __launch_bounds__(Sm90Traits<T, Tile>::kThreads, 1)
    linear_sm90(__grid_constant__ Sm90Args<T> const args) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Traits = Sm90Traits<T, Tile>;
  extern __shared__ __align__(1024) uint8_t memory[];
  Sm90Shared<Traits> const shared{shared_address(memory)};
  int const warp = static_cast<int>(threadIdx.x) / 32;
  bool const first_lane = threadIdx.x % 32 == 0;

  if (threadIdx.x == 0) {
    for (CUtensorMap const* map : {&args.xq, &args.wq, &args.xo, &args.wo, &args.y}) prefetch_tensor_map(map);
    for (int stage = 0; stage < Traits::kStages; ++stage) {
      mbarrier_init(shared.full(stage), 1);
      mbarrier_init(shared.empty(stage), Tile::kCluster * Traits::kReaderWarps);
    }
    for (int slot = 0; slot < Traits::kVectorSlots; ++slot) {
      mbarrier_init(shared.vectors_full(slot), 1);
      mbarrier_init(shared.vectors_empty(slot), Traits::kReaderWarps);
    }
    mbarrier_init_fence();
  }
  if constexpr (Tile::kCluster > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }

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
  if constexpr (Tile::kCluster > 1) cluster_sync();
#else
  __trap();  // not launched: compiled along with the library's other architectures
#endif
}

}  // namespace graphopt::mixq
