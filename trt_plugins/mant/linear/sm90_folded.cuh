// M-ANT linear on Hopper for many tokens: wgmma fed by the copy engine, one persistent block per multiprocessor, two
// blocks in a cluster.
//
// Y^T = W X^T: wgmma takes its A operand from registers, where codes become numbers that carry their group's scale, so
// the rows of its product are rows of W and its columns tokens. Three warpgroups: the first brings tiles in, the other
// two multiply 64 rows of W each:
//
//     128 bytes of x  ... | ... | ... |   codes -> numbers in registers; sums (wgmma)
//     T(sums row_scale sx + bias) -> transposed in shared memory -> copy engine
//
// The codes of a stage are decoded while the products of the stage before run: two sets of registers take turns. The
// blocks of a cluster have the same tokens: each brings half of x to both, as x is most of what L2 must deliver.
#pragma once

#include <cstdint>

#include "common/sm90_ring.cuh"
#include "common/sm90_store.cuh"
#include "common/sm90_walk.cuh"
#include "common/wgmma.cuh"
#include "mant/linear/sm90_folded_codes.cuh"
#include "mant/linear/sm90_result.cuh"
#include "mant/linear/sm90_tile.h"

namespace graphopt::mant {

/// Operands of the kernel; lives in constant memory, where the copy engine wants its tensor maps.
struct FoldedArgs {
  CUtensorMap x;      // [M, K], rows of 128 bytes
  CUtensorMap codes;  // [N, row_bytes], rows of Decoder::kCodeBytes
  CUtensorMap y;      // [M, N] T
  LinearArgs of;      // its x is not used
  FoldedTables tables;
  int32_t x_rows;  // of a half, brought into a stage; the rest of it belongs to tokens that are not stored
  int32_t stages;  // along K, even
  Sm90Grid grid;   // down: tiles of tokens; across: clusters of rows of W
};

/// Offsets into the block's shared memory.
template <class Tile>
struct FoldedShared {
  uint32_t base;

  using Stages = Ring<Tile::kStages, Tile::kXBytes, Tile::kWBytes>;
  __device__ __forceinline__ Stages stages() const { return {base, base + Tile::kBarrierOffset}; }
  __device__ __forceinline__ uint32_t staging(int warpgroup, int buffer) const {
    return base + Tile::kStagingOffset + (2 * warpgroup + buffer) * Tile::kStoreBytes;
  }
};

template <class Tile>
using FoldedWalk = TileWalk<Tile::kTokens, kSm90Rows, Tile::kCluster>;

/// One thread: fill the ring for every tile of Y.
template <class Decoder, class Tile>
__device__ __forceinline__ void produce(FoldedArgs const& args, FoldedShared<Tile> const& shared) {
  constexpr uint16_t kEveryone = (1 << Tile::kCluster) - 1;
  constexpr int kPart = Tile::kTokens / Tile::kCluster;
  auto const stages = shared.stages();
  RingPosition<Tile::kStages> at;
  FoldedWalk<Tile> walk(args.grid);
  int const first = walk.rank() * kPart;
  uint32_t const bytes = Tile::kCluster * args.x_rows * kSwizzleBytes + Tile::kWBytes;
  int token, row;
  while (walk.next(token, row)) {
    for (int i = 0; i < args.stages; ++i) {
      uint32_t const barrier = stages.full(at.stage);
      stages.acquire(at, bytes);
      tma_load(stages.w(at.stage), &args.codes, barrier, i * Decoder::kCodeBytes, row);
      tma_load_multicast(stages.x(at.stage) + first * kSwizzleBytes, &args.x, barrier, i * Decoder::kColumns,
                         token + first, kEveryone);
      at.advance();
    }
  }
}

/// One warpgroup that multiplies: 64 rows of W of every tile of Y.
template <class Decoder, class Tile>
class FoldedConsumer {
  using Product = Wgmma<Tile::kTokens>;
  using Group = typename Decoder::Group;
  using X = typename Decoder::X;
  static constexpr int kSums = Tile::kTokens / 2;
  static constexpr int kTurnBarrier = 3;  // and the next; 1 and 2 are for stores

 public:
  __device__ __forceinline__ FoldedConsumer(FoldedArgs const& args, FoldedShared<Tile> const& shared, uint32_t table,
                                            int warpgroup)
      : args_(args),
        shared_(shared),
        table_(table),
        warpgroup_(warpgroup),
        row_(warpgroup * kWgmmaRows + warp_ * 16 + lane_ / 4) {}

  template <bool kSymmetric>
  __device__ __forceinline__ void run() {
    FoldedWalk<Tile> walk(args_.grid);
    int token, row;
    if (warpgroup_ == 1) give_turn();
    while (walk.next(token, row)) {
      multiply<kSymmetric>(row);
      store(token, row + warpgroup_ * kWgmmaRows);
    }
    if (warpgroup_ == 0) take_turn();  // the last that was given
    if (is_leader()) bulk_wait_read<0>();
  }

 private:
  __device__ __forceinline__ bool is_leader() const { return threadIdx.x % kWarpgroup == 0; }

  /// Sums of the tile whose first row of W is `row`. Scales come two stages before their use.
  template <bool kSymmetric>
  __device__ __forceinline__ void multiply(int row) {
#pragma unroll
    for (int r = 0; r < 2; ++r) channel_[r] = min(row + row_ + 8 * r, static_cast<int>(args_.of.n) - 1);
    FoldedOperand a[2];
    Group groups[2];
#pragma unroll
    for (int s = 0; s < 2; ++s) load<kSymmetric>(groups[s], s);
    int previous = -1;
#pragma unroll 1
    for (int i = 0; i < args_.stages; i += 2) {
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        mbarrier_wait(shared_.stages().full(at_.stage), at_.parity);
        uint32_t const codes = shared_.stages().w(at_.stage) + row_ * Decoder::kCodeBytes;
        Decoder::template decode<kSymmetric>(a[s], groups[s], codes, table_, row_, channel_);
        load<kSymmetric>(groups[s], i + s + 2);
        start(a[s], i > 0 || s > 0);
        wgmma_wait<1>();
        if (previous >= 0) release(previous);  // nobody of this warp reads the stage before any more
        previous = at_.stage;
        at_.advance();
      }
    }
    wgmma_wait<0>();
    wgmma_pin(sum_);
    release(previous);
  }

  template <bool kSymmetric>
  __device__ __forceinline__ void load(Group& of, int stage) const {
    Decoder::template load<kSymmetric>(of, args_.of, args_.tables, min(stage, args_.stages - 1), channel_);
  }

  /// Wait until the other warpgroup has started its products, so that one decodes while those of the other run.
  __device__ __forceinline__ void take_turn() const { warpgroup_await(kTurnBarrier + warpgroup_); }
  __device__ __forceinline__ void give_turn() const { warpgroup_signal(kTurnBarrier + 1 - warpgroup_); }

  /// Start the products of the current stage, in turn with the other warpgroup.
  __device__ __forceinline__ void start(FoldedOperand& a, bool accumulate) {
    uint64_t const x = wgmma_descriptor(shared_.stages().x(at_.stage));
#pragma unroll
    for (int k = 0; k < 4; ++k) wgmma_pin(a[k]);
    take_turn();
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      uint64_t const columns = x + k * (kWgmmaStepBytes / 16);
      if constexpr (sizeof(X) == 1) {
        Product::s8(sum_, a[k], columns, accumulate || k > 0);
      } else {
        Product::product(sum_, a[k], columns, accumulate || k > 0, X{});
      }
    }
    wgmma_commit();
    give_turn();
  }

  /// Tell the blocks that bring x here that this warp has read the stage.
  __device__ __forceinline__ void release(int stage) const {
    __syncwarp();
    if (lane_ < Tile::kCluster) mbarrier_arrive_at(shared_.stages().empty(stage), lane_);
  }

  /// Tokens of 64 rows of W, Tile::kStoreTokens at a time, through two buffers of shared memory.
  __device__ __forceinline__ void store(int token, int row) {
    float scale[2], bias[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      scale[h] = Decoder::row_scale(args_.tables, channel_[h]);
      bias[h] = load_activation(args_.of.bias, channel_[h], args_.of.dtype);
    }
    store_tokens<Tile::kTokens, Tile::kStoreTokens>(
        args_.y, static_cast<int>(args_.of.m), warpgroup_, is_leader(), buffer_, token, row,
        [&](int turn) { return shared_.staging(warpgroup_, turn); },
        [&](int c, int first, uint32_t place) {
          stage_result<Tile::kStoreTokens>(args_.of, place, first, scale, bias, [&](int i) {
            return Decoder::number(sum_[c * (Tile::kStoreTokens / 2) + i]);
          });
        });
  }

  FoldedArgs const& args_;
  FoldedShared<Tile> const shared_;
  uint32_t const table_;
  int const warp_ = static_cast<int>(threadIdx.x) / 32 % 4;
  int const lane_ = static_cast<int>(threadIdx.x) % 32;
  int const warpgroup_;
  int const row_;  // this lane's first of the tile's rows of W; the second is 8 further on
  int channel_[2];  // their numbers, none beyond the last
  RingPosition<Tile::kStages> at_;
  int buffer_ = 0;
  uint32_t sum_[kSums];
};

template <class Decoder, class Tile>
__global__ void __cluster_dims__(Tile::kCluster, 1, 1) __launch_bounds__(Tile::kThreads, 1)
    linear_folded(__grid_constant__ FoldedArgs const args) {
  extern __shared__ __align__(1024) uint8_t memory[];
  FoldedShared<Tile> const shared{shared_address(memory)};
  int const warp = static_cast<int>(threadIdx.x) / 32;

  if (threadIdx.x == 0) {
    for (CUtensorMap const* map : {&args.x, &args.codes, &args.y}) prefetch_tensor_map(map);
    shared.stages().init(Tile::kCluster * Tile::kReaderWarps);
    mbarrier_init_fence();
  }
  cluster_sync();
  wait_for_predecessor();
  release_successor();
  auto* const entries = reinterpret_cast<uint4*>(memory + Tile::kTableOffset);
  bool const symmetric = __syncthreads_and(Decoder::fill(entries, args.of, static_cast<int>(threadIdx.x)));

  if (warp < kWarpgroup / 32) {
    release_registers<kSm90ProducerRegisters>();
    if (threadIdx.x == 0) produce<Decoder>(args, shared);
    __syncwarp();
  } else {
    claim_registers<kSm90ConsumerRegisters>();
    FoldedConsumer<Decoder, Tile> consumer(args, shared, shared.base + Tile::kTableOffset, warp / 4 - 1);
    if (symmetric) {
      consumer.template run<true>();
    } else {
      consumer.template run<false>();
    }
  }
  cluster_depart();  // a block's shared memory must outlive the arrivals of its peer
}

}  // namespace graphopt::mant
