// Matrix product on Hopper: wgmma fed by the copy engine, one persistent block per multiprocessor. See gemm.h, and
// mixq/linear for outliers.
//
// Three warpgroups: the first brings tiles in, the other two multiply, each half of a tile of Y:
//
//     operands, K    ... | ... | ... |   int32 sums (wgmma s8), or float32 (wgmma f16 or bf16)
//     y = sums sx sw                     in place: int32 and float32 sums have the same register layout
//     outliers, C    ... |               float32 sums (wgmma f16 or bf16) on the same registers
//     T(y + bias + residual) -> shared memory -> copy engine
//
// Blocks of a cluster share rows of W: each brings its part of them to all.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/gemm/sm90_multiply.cuh"
#include "common/sm90_convert.cuh"
#include "common/sm90_grid.h"
#include "common/sm90_residual.cuh"
#include "common/sm90_store.cuh"

namespace graphopt {

/// Operands of the kernel; lives in constant memory, where the copy engine wants its tensor maps.
template <class X, class T>
struct GemmArgs {
  CUtensorMap x;   // [M, K] X
  CUtensorMap w;   // [N, K] X
  CUtensorMap xo;  // [M, C] T; this, wo and the residual are not looked at without outliers
  CUtensorMap wo;  // [N, C] T
  CUtensorMap y;   // [M, N] T
  CUtensorMap residual;  // [M, N] T
  float const* sx;  // [M]; this and sw may be null without outliers
  float const* sw;  // [N], a multiple of 16 bytes, as bias
  T const* bias;    // [N]
  int32_t m;
  int32_t n;
  int32_t early;       // stages of a block's first tile whose W is brought before the kernel before ends, at most the ring
  uint32_t residual_bytes;  // of a box of the residual, 0 if there is none
  int32_t x_rows;      // brought into a stage; the rest of a stage belongs to rows that are not stored
  StageOrder<X, T> order;
  Sm90Grid grid;
};

/// Offsets into the block's shared memory.
template <class Traits>
struct GemmShared {
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
  __device__ __forceinline__ uint32_t residual_full(int warpgroup) const {
    return vectors_empty() + 8 + 16 * warpgroup;
  }
};

/// The tiles of one block: those of its cluster, every `clusters`-th in the order of Sm90Grid.
template <class Tile>
class GemmWalk {
 public:
  __device__ __forceinline__ explicit GemmWalk(Sm90Grid const& grid)
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

/// One thread: fill the ring for every tile of Y.
template <class Traits>
class GemmProducer {
  using Args = GemmArgs<typename Traits::X, typename Traits::T>;
  using Tile = typename Traits::Tile;

 public:
  __device__ __forceinline__ GemmProducer(Args const& args, GemmShared<Traits> const& shared)
      : args_(args), stages_(shared.stages()), bytes_(args.x_rows * kStageRowBytes + Traits::kWBytes) {}

  /// Bring W of the first stages: into the ring, or where blocks share it, which may not all have started, into L2.
  /// Nothing else: the kernel before may run yet.
  __device__ __forceinline__ void start() {
    GemmWalk<Tile> walk(args_.grid);
    int row, column;
    if (!walk.next(row, column)) return;
    RingPosition<Traits::kStages> at;
    for (int i = 0; i < args_.early; ++i, at.advance()) {
      int const k = args_.order.column(i);
      if constexpr (Tile::kCluster == 1) {
        stages_.acquire(at, bytes_);
        tma_load(stages_.w(at.stage), &args_.w, stages_.full(at.stage), k, column);
      } else {
        tma_prefetch(&args_.w, k, column + walk.rank() * (Tile::kRowsN / Tile::kCluster));
      }
    }
  }

  __device__ __forceinline__ void run() {
    GemmWalk<Tile> walk(args_.grid);
    RingPosition<Traits::kStages> at;
    int row, column, started = Traits::kOutliers && Tile::kCluster == 1 ? args_.early : 0;  // stages of this tile
    while (walk.next(row, column)) {
      for (int i = 0; i < stage_count(); ++i, at.advance()) {
        bool const main = !Traits::kOutliers || args_.order.is_main(i);
        int const k = args_.order.column(i);
        uint32_t const barrier = stages_.full(at.stage);
        if (i >= started) {
          stages_.acquire(at, bytes_);
          load_w<Tile>(stages_.w(at.stage), main ? &args_.w : &args_.wo, barrier, k, column, walk.rank());
        }
        tma_load(stages_.x(at.stage), main ? &args_.x : &args_.xo, barrier, k, row);
      }
      started = 0;
    }
  }

 private:
  __device__ __forceinline__ int stage_count() const {
    return Traits::kOutliers ? args_.order.tiles() : args_.order.main_tiles;
  }

  Args const& args_;
  typename GemmShared<Traits>::Stages const stages_;
  uint32_t const bytes_;  // of a stage
};

/// One thread: bring bias, and sw if there is one, of every tile's columns.
template <class Traits, class Args>
__device__ __forceinline__ void produce_vectors(Args const& args, GemmShared<Traits> const& shared) {
  using Tile = typename Traits::Tile;
  using T = typename Traits::T;
  bool const scales = Traits::kOutliers || args.sw != nullptr;
  GemmWalk<Tile> walk(args.grid);
  int row, column;
  for (uint32_t parity = 0; walk.next(row, column); parity ^= 1) {
    int const count = min(Tile::kRowsN, args.n - column);
    mbarrier_wait(shared.vectors_empty(), parity ^ 1);
    mbarrier_arrive_expect(shared.vectors_full(), count * ((scales ? sizeof(float) : 0) + sizeof(T)));
    if (scales) bulk_load(shared.sw(), args.sw + column, count * sizeof(float), shared.vectors_full());
    bulk_load(shared.bias(), args.bias + column, count * sizeof(T), shared.vectors_full());
  }
}

/// One warpgroup that multiplies: its half of every tile of Y.
template <class Traits>
class GemmConsumer {
 public:
  using X = typename Traits::X;
  using T = typename Traits::T;
  using Args = GemmArgs<X, T>;
  using Tile = typename Traits::Tile;
  using Product = Wgmma<Tile::kRowsN>;

  __device__ __forceinline__ GemmConsumer(Args const& args, GemmShared<Traits> const& shared, int warpgroup)
      : args_(args),
        shared_(shared),
        stages_(shared.stages()),
        warpgroup_(warpgroup),
        residual_(&args.residual, args.residual_bytes, shared.residual_full(warpgroup), is_leader()) {}

  __device__ __forceinline__ void run() {
    GemmWalk<Tile> walk(args_.grid);
    int row, column;
    while (walk.next(row, column)) {
      row += warpgroup_ * Traits::kRows;
      float sx[Traits::kBlocks][2];
      load_sx(sx, row);
      if constexpr (Traits::kOutliers) {
        residual_.begin(buffer_, kParts, BufferAt{shared_, warpgroup_}, PartAt{column, row});
      }
      multiply(sum_, stages_, at_, args_.order.main_tiles, *this, [](auto& d, uint64_t x, uint64_t w, bool first) {
        if constexpr (kInteger) {
          Product::s8(d, x, w, !first);
        } else {
          Product::product(d, x, w, !first, X{});
        }
      });
      mbarrier_wait(shared_.vectors_full(), vectors_parity_);
      vectors_parity_ ^= 1;
      scale(sx);
      if constexpr (Traits::kOutliers) {
        multiply(sum_, stages_, at_, args_.order.outlier_tiles, *this, [](auto& d, uint64_t x, uint64_t w, bool) {
          Product::product(d, x, w, true, T{});
        });
      }
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
  static constexpr bool kInteger = std::is_same_v<X, int8_t>;
  // Y is stored in parts of 64 rows of 128 bytes, those of a block of 64 rows one after the other.
  static constexpr int kPartsAcross = Tile::kRowsN / Traits::kStoreCols;
  static constexpr int kParts = Traits::kBlocks * kPartsAcross;

  struct BufferAt {
    GemmShared<Traits> const& shared;
    int warpgroup;
    __device__ __forceinline__ uint32_t operator()(int turn) const { return shared.staging(warpgroup, turn); }
  };

  /// The first column and row in Y of a part of the tile.
  struct PartAt {
    int column, row;
    __device__ __forceinline__ int2 operator()(int part) const {
      return {column + part % kPartsAcross * Traits::kStoreCols, row + part / kPartsAcross * kWgmmaRows};
    }
  };

  __device__ __forceinline__ static bool is_leader() { return threadIdx.x % kWarpgroup == 0; }

  /// The scales of this thread's rows. Volatile, so that the loads start here and end under the products.
  __device__ __forceinline__ void load_sx(float (&sx)[Traits::kBlocks][2], int row) const {
#pragma unroll
    for (int i = 0; i < 2 * Traits::kBlocks; ++i) {
      int const at = row + i / 2 * kWgmmaRows + warp_ * 16 + lane_ / 4 + i % 2 * 8;
      if (Traits::kOutliers || args_.sx != nullptr) {
        sx[i / 2][i % 2] = at < args_.m ? load_early(args_.sx + at) : 0.0f;
      } else {
        sx[i / 2][i % 2] = 1.0f;
      }
    }
  }

  /// Sums -> float32 sums times sx sw, in place.
  __device__ __forceinline__ void scale(float const (&sx)[Traits::kBlocks][2]) {
    bool const has_sw = Traits::kOutliers || args_.sw != nullptr;
    if (!kInteger && !has_sw && args_.sx == nullptr) return;
#pragma unroll
    for (int j = 0; j < Tile::kRowsN / 8; ++j) {
      float sw[2] = {1.0f, 1.0f};
      uint32_t const at = shared_.sw() + (8 * j + 2 * (lane_ % 4)) * sizeof(float);
      if (has_sw) asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(sw[0]), "=f"(sw[1]) : "r"(at) : "memory");
#pragma unroll
      for (int b = 0; b < Traits::kBlocks; ++b) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          uint32_t& sum = sum_[b][4 * j + i];
          sum = __float_as_uint(number(sum) * (sx[b][i / 2] * sw[i % 2]));
        }
      }
    }
  }

  __device__ __forceinline__ static float number(uint32_t sum) {
    return kInteger ? __int2float_rn(static_cast<int32_t>(sum)) : __uint_as_float(sum);
  }

  __device__ __forceinline__ bool has_residual() const { return Traits::kOutliers && residual_.exists(); }

  /// y = T(sums + bias + residual), a part at a time, through two buffers of shared memory.
  __device__ __forceinline__ void store(int row, int column) {
    PartAt const at{column, row};
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      uint32_t const buffer = shared_.staging(warpgroup_, buffer_);
      if (has_residual()) {
        residual_.wait(buffer_);
      } else {
        acquire_buffer(warpgroup_, is_leader());
      }
      stage_columns(sum_[part / kPartsAcross], part % kPartsAcross, buffer);
      store_buffer(args_.y, warpgroup_, is_leader(), buffer, at(part).x, at(part).y);
      if constexpr (Traits::kOutliers) residual_.advance(buffer_, buffer, part, kParts, at);
      buffer_ ^= 1;
    }
  }

  /// Columns kStoreCols c.. of 64 rows, swizzled as the copy engine expects: chunk of 16 bytes ^ (row % 8).
  __device__ __forceinline__ void stage_columns(uint32_t const (&sum)[Traits::kSums], int c, uint32_t buffer) const {
    int const row = warp_ * 16 + lane_ % 16;
#pragma unroll
    for (int q = 0; q < Traits::kStoreCols / 16; ++q) {
      int const j = c * Traits::kStoreCols / 8 + 2 * q, chunk = 2 * q + lane_ / 16;
      uint32_t const place = buffer + row * kSwizzleBytes + ((chunk ^ (lane_ % 8)) * 16);
      uint32_t word[4], residual[4];
      if (has_residual()) ldmatrix_x4(residual, place);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        uint32_t bits;
        uint32_t const at = shared_.bias() + (8 * (j + i) + 2 * (lane_ % 4)) * sizeof(T);
        asm volatile("ld.shared.u32 %0, [%1];" : "=r"(bits) : "r"(at) : "memory");
        float2 const bias = unpack(bits, T{});
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float low = __uint_as_float(sum[4 * (j + i) + 2 * h]) + bias.x;
          float high = __uint_as_float(sum[4 * (j + i) + 2 * h + 1]) + bias.y;
          if (has_residual()) {
            float2 const more = unpack(residual[2 * i + h], T{});
            low += more.x, high += more.y;
          }
          word[2 * i + h] = pack(low, high, T{});
        }
      }
      stmatrix_x4(place, word[0], word[1], word[2], word[3]);
    }
  }

  Args const& args_;
  GemmShared<Traits> const shared_;
  typename GemmShared<Traits>::Stages const stages_;
  int const warpgroup_;
  int const warp_ = static_cast<int>(threadIdx.x) / 32 % 4;
  int const lane_ = static_cast<int>(threadIdx.x) % 32;
  RingPosition<Traits::kStages> at_;
  uint32_t vectors_parity_ = 0;
  int buffer_ = 0;
  Sm90Residual residual_;
  uint32_t sum_[Traits::kBlocks][Traits::kSums];
};

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    gemm_sm90(__grid_constant__ GemmArgs<typename Traits::X, typename Traits::T> const args) {
  using Tile = typename Traits::Tile;
  extern __shared__ __align__(1024) uint8_t memory[];
  GemmShared<Traits> const shared{shared_address(memory)};
  int const warp = static_cast<int>(threadIdx.x) / 32;
  bool const first_lane = threadIdx.x % 32 == 0;

  if (threadIdx.x == 0) {
    if constexpr (Traits::kOutliers) {
      for (CUtensorMap const* map : {&args.x, &args.w, &args.xo, &args.wo, &args.y}) prefetch_tensor_map(map);
    } else {
      for (CUtensorMap const* map : {&args.x, &args.w, &args.y}) prefetch_tensor_map(map);
    }
    shared.stages().init(Tile::kCluster * Traits::kReaderWarps);
    mbarrier_init(shared.vectors_full(), 1);
    mbarrier_init(shared.vectors_empty(), 32 * Traits::kReaderWarps);
    for (int warpgroup = 0; warpgroup < Traits::kConsumers; ++warpgroup) {
      Sm90Residual::init(shared.residual_full(warpgroup));
    }
    mbarrier_init_fence();
  }
  GemmProducer<Traits> producer(args, shared);
  if (Traits::kOutliers && threadIdx.x == 0) producer.start();
  if constexpr (Tile::kCluster > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }
  wait_for_predecessor();
  release_successor();

  if (warp < kWarpgroup / 32) {
    release_registers<Traits::kProducerRegisters>();
    if (warp == 0 && first_lane) producer.run();
    if (warp == 1 && first_lane) produce_vectors(args, shared);
    __syncwarp();
  } else {
    claim_registers<Traits::kConsumerRegisters>();
    GemmConsumer<Traits>(args, shared, warp / 4 - 1).run();
  }
  // A block's shared memory must outlive the arrivals of its peers.
  if constexpr (Tile::kCluster > 1) cluster_depart();
}

}  // namespace graphopt
