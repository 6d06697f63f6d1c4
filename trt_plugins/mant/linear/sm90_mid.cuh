// M-ANT linear on Hopper for some dozens of tokens: every code is decoded once, into the registers that wgmma takes W
// from, and all tokens of the tile are the other operand, which the copy engine brings.
//
// Y^T = W X^T: rows of the product are rows of W, columns tokens. The blocks of a cluster have the same tile of Y and
// divide K; each leaves its sums in its shared memory, and each adds up those of all for its share of the tokens, in the
// order of K. Two stages take turns: the codes of one are decoded while the products of the other run.
//
// Weights do not wait for the kernel before: they are constants. The first stages of W are on their way when it ends.
#pragma once

#include <cstdint>

#include "common/sm90_ring.cuh"
#include "common/wgmma.cuh"
#include "mant/linear/sm90_folded_codes.cuh"
#include "mant/linear/sm90_mid_tile.h"
#include "mant/linear/sm90_result.cuh"

namespace graphopt::mant {

/// Operands of the kernel; lives in constant memory, where the copy engine wants its tensor maps.
struct MidArgs {
  CUtensorMap x;      // [M, K] T, rows of 128 bytes
  CUtensorMap codes;  // [N, row_bytes], rows of MidTile::kCodeBytes
  LinearArgs of;      // its x is not used
  int32_t x_rows;     // brought into a stage; the rest of it belongs to tokens that are not stored
  int32_t stages;     // of each block, even
  int32_t split;      // blocks of a cluster
};

/// A block's shared memory.
template <class Tile>
struct MidShared {
  using Stages = Ring<Tile::kStages, Tile::kXBytes, Tile::kWBytes>;
  uint32_t base;

  __device__ __forceinline__ Stages stages() const { return {base, base + Tile::kBarrierOffset}; }
  __device__ __forceinline__ uint32_t scales(int stage) const {
    return base + Tile::kGroupOffset + stage * (Tile::kScaleBytes + Tile::kTypeBytes);
  }
  __device__ __forceinline__ uint32_t types(int stage) const { return scales(stage) + Tile::kScaleBytes; }
};

/// Where a block's tile and its part of K begin.
struct MidPlace {
  int row, token, stage;
};

/// One thread: bring in all stages. W's first ones do not wait for the kernel before.
template <class Tile>
class MidProducer {
 public:
  __device__ __forceinline__ MidProducer(MidArgs const& args, MidShared<Tile> const& shared, MidPlace const& place)
      : args_(args), shared_(shared), place_(place) {
    int const rows = min(Tile::kRows, static_cast<int>(args.of.n) - place.row);
    scale_bytes_ = 2 * rows;
    type_bytes_ = min(Tile::kTypeBytes, args.of.type_bytes - place.row / 2);
  }

  __device__ __forceinline__ void run() const {
    auto const stages = shared_.stages();
    int const ahead = min(Tile::kStages, args_.stages);
    typename MidShared<Tile>::Stages::Position at;
    prefetch_tensor_map(&args_.codes);
    prefetch_tensor_map(&args_.x);
    for (int i = 0; i < ahead; ++i) bring_w(i, i);
    wait_for_predecessor();
    release_successor();
    for (int i = 0; i < ahead; ++i) bring_x(i, i);
    if (ahead == Tile::kStages) at.parity = 1;  // the first round of all stages is over
    for (int i = ahead; i < args_.stages; ++i) {
      mbarrier_wait(stages.empty(at.stage), at.parity ^ 1);
      bring_w(i, at.stage);
      bring_x(i, at.stage);
      at.advance();
    }
  }

 private:
  __device__ __forceinline__ void bring_w(int i, int stage) const {
    auto const stages = shared_.stages();
    uint32_t const barrier = stages.full(stage);
    int const first = (place_.stage + i) * Tile::kColumns;
    mbarrier_arrive_expect(barrier, args_.x_rows * kSwizzleBytes + Tile::kWBytes + scale_bytes_ + type_bytes_);
    tma_load(stages.w(stage), &args_.codes, barrier, first / 2, place_.row);
    int64_t const group = group_of(args_.of, first);
    bulk_load(shared_.scales(stage), args_.of.scale + group * args_.of.n + place_.row, scale_bytes_, barrier);
    bulk_load(shared_.types(stage), args_.of.types + group * args_.of.type_bytes + place_.row / 2, type_bytes_, barrier);
  }

  __device__ __forceinline__ void bring_x(int i, int stage) const {
    auto const stages = shared_.stages();
    tma_load(stages.x(stage), &args_.x, stages.full(stage), (place_.stage + i) * Tile::kColumns, place_.token);
  }

  MidArgs const& args_;
  MidShared<Tile> const& shared_;
  MidPlace const& place_;
  uint32_t scale_bytes_, type_bytes_;  // of a stage
};

/// One warpgroup that multiplies: 64 rows of W.
template <class T, class Tile>
class MidConsumer {
  using Decoder = FoldedFloat<T>;
  using Product = Wgmma<Tile::kTokens>;
  static constexpr int kSums = Tile::kTokens / 2;

 public:
  __device__ __forceinline__ MidConsumer(MidArgs const& args, MidShared<Tile> const& shared)
      : args_(args), shared_(shared), row_(warp_ * 16 + lane_ / 4), rows_{row_, row_ + 8} {}

  /// Sums of all of the block's stages.
  template <bool kSymmetric>
  __device__ __forceinline__ void multiply() {
    FoldedOperand a[2];
    int previous = -1;
#pragma unroll 1
    for (int i = 0; i < args_.stages; i += 2) {
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        mbarrier_wait(shared_.stages().full(at_.stage), at_.parity);
        decode<kSymmetric>(a[s]);
        start(a[s], i > 0 || s > 0);
        wgmma_wait<1>();
        if (previous >= 0) release(previous);  // this thread reads the stage before no more
        previous = at_.stage;
        at_.advance();
      }
    }
    wgmma_wait<0>();
    wgmma_pin(sum_);
  }

  /// Leave the sums at `part`, see MidTile::kPartPitch.
  __device__ __forceinline__ void leave(float* part) const {
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      int const token = i / 4 * 8 + lane_ % 4 * 2 + i % 2, row = row_ + i / 2 % 2 * 8;
      part[token * Tile::kPartPitch + row] = __uint_as_float(sum_[i]);
    }
  }

 private:
  template <bool kSymmetric>
  __device__ __forceinline__ void decode(FoldedOperand& a) const {
    typename Decoder::Group group;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      int const row = rows_[r];
      asm volatile("ld.shared.u16 %0, [%1];"
                   : "=h"(group.scale[r])
                   : "r"(shared_.scales(at_.stage) + row * 2)
                   : "memory");
      group.types[r] = load_shared_byte(shared_.types(at_.stage) + row / 32 * 16 + row % 16);
    }
    uint32_t const codes = shared_.stages().w(at_.stage) + row_ * Tile::kCodeBytes;
    Decoder::template decode<kSymmetric>(a, group, codes, shared_.base + Tile::kTableOffset, row_, rows_);
  }

  /// Start the products of the current stage.
  __device__ __forceinline__ void start(FoldedOperand& a, bool accumulate) {
    uint64_t const x = wgmma_descriptor(shared_.stages().x(at_.stage));
#pragma unroll
    for (int k = 0; k < 4; ++k) wgmma_pin(a[k]);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      Product::product(sum_, a[k], x + k * (kWgmmaStepBytes / 16), accumulate || k > 0, T{});
    }
    wgmma_commit();
  }

  /// Tell the producer that this thread has read the stage. Each does: racecheck orders only what the one that arrives read.
  __device__ __forceinline__ void release(int stage) const { mbarrier_arrive(shared_.stages().empty(stage)); }

  MidArgs const& args_;
  MidShared<Tile> const& shared_;
  int const warp_ = static_cast<int>(threadIdx.x) / 32;
  int const lane_ = static_cast<int>(threadIdx.x) % 32;
  int const row_;      // this lane's first of the tile's rows of W
  int const rows_[2];  // and the second
  RingPosition<Tile::kStages> at_;
  uint32_t sum_[kSums];
};

/// Add up the parts of kSplit blocks for this block's share of the tokens, scale, add the bias, round, store.
///   part: in the shared address space; at the same place in all blocks.
template <class Tile, int kSplit>
__device__ __forceinline__ void add_parts(LinearArgs const& of, uint32_t part, MidPlace const& place, int rank) {
  constexpr int kQuads = Tile::kRows / 4, kAtOnce = Tile::kConsumerThreads / kQuads;
  constexpr int kShare = Tile::kTokens / kSplit;
  static_assert(kShare % kAtOnce == 0);
  int const quad = static_cast<int>(threadIdx.x) % kQuads;
  int64_t const n = place.row + 4 * quad;
  if (n >= of.n) return;  // N is a multiple of 8
  float bias[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) bias[i] = load_activation(of.bias, n + i, of.dtype);
#pragma unroll 1
  for (int i = 0; i < kShare; i += kAtOnce) {
    int const token = rank * kShare + i + static_cast<int>(threadIdx.x) / kQuads;
    int64_t const m = place.token + token;
    if (m >= of.m) return;
    float const sx = of.sx == nullptr ? 1.0f : __ldg(of.sx + m);
    float parts[kSplit][4], sum[4] = {};
#pragma unroll
    for (int s = 0; s < kSplit; ++s) {
      load_at(parts[s], address_at(part + (token * Tile::kPartPitch + 4 * quad) * 4, s));
    }
#pragma unroll
    for (int s = 0; s < kSplit; ++s) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[j] += parts[s][j];
    }
    auto const rounded = [&](int j) {
      return rounded_pair(fmaf(sum[j], sx, bias[j]), fmaf(sum[j + 1], sx, bias[j + 1]), of.dtype);
    };
    *reinterpret_cast<uint2*>(static_cast<uint16_t*>(of.y) + m * of.n + n) = {rounded(0), rounded(2)};
  }
}

/// T: what the products take.
template <class T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    linear_mid(__grid_constant__ MidArgs const args) {
  extern __shared__ __align__(1024) uint8_t memory[];
  MidShared<Tile> const shared{shared_address(memory)};
  int const thread = static_cast<int>(threadIdx.x), rank = static_cast<int>(cluster_rank());
  MidPlace const place{static_cast<int>(blockIdx.x) / args.split * Tile::kRows,
                       static_cast<int>(blockIdx.y) * Tile::kTokens, rank * args.stages};
  bool const consumer = thread < Tile::kConsumerThreads;
  if (thread == 0) {
    shared.stages().init(Tile::kConsumerThreads);
    mbarrier_init_fence();
  }
  auto* const entries = reinterpret_cast<uint4*>(memory + Tile::kTableOffset);
  bool const symmetric = __syncthreads_and(FoldedFloat<T>::fill(entries, args.of, thread));

  if (consumer) {
    wait_for_predecessor();
    release_successor();
    MidConsumer<T, Tile> own(args, shared);
    if (symmetric) {
      own.template multiply<true>();
    } else {
      own.template multiply<false>();
    }
    threads_sync<Tile::kConsumerThreads>(1);  // nobody reads the stages any more
    own.leave(reinterpret_cast<float*>(memory));
  } else {
    if (thread == Tile::kConsumerThreads) MidProducer<Tile>(args, shared, place).run();
    __syncwarp();
  }
  cluster_sync();
  if (consumer) {
    switch (args.split) {
      case 1:
        add_parts<Tile, 1>(args.of, shared.base, place, rank);
        break;
      case 2:
        add_parts<Tile, 2>(args.of, shared.base, place, rank);
        break;
      case 4:
        add_parts<Tile, 4>(args.of, shared.base, place, rank);
        break;
      default:
        add_parts<Tile, 8>(args.of, shared.base, place, rank);
    }
  }
  __syncwarp();
  cluster_depart();  // a block's shared memory must outlive the reads of its peers
}

}  // namespace graphopt::mant
