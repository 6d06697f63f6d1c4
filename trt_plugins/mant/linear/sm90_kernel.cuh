// M-ANT linear of int8 x on Hopper, exact sums of groups: wgmma fed by the copy engine, one persistent block per
// multiprocessor.
//
// Yᵀ = W Xᵀ: wgmma takes its A operand from registers, where codes become numbers, so the rows of its product are rows
// of W and its columns tokens. Three warpgroups: the first brings tiles in, the other two multiply 64 rows of W each:
//
//     64 columns  ... | ... | ... |   codes -> numbers in registers; sums of this group (wgmma)
//                     |     |         total += scale * sums
//     T(total sx + bias) -> transposed in shared memory -> copy engine
//
// While one warpgroup decodes and scales, the products of the other run.
#pragma once

#include <cstdint>

#include "common/sm90_ring.cuh"
#include "common/sm90_store.cuh"
#include "common/sm90_walk.cuh"
#include "common/wgmma.cuh"
#include "mant/linear/sm90_codes.cuh"
#include "mant/linear/sm90_result.cuh"
#include "mant/linear/sm90_tile.h"

namespace graphopt::mant {

/// Operands of the kernel; lives in constant memory, where the copy engine wants its tensor maps.
struct Sm90Args {
  CUtensorMap x;      // [M, K] int8, rows of 128 bytes
  CUtensorMap codes;  // [N, row_bytes], rows of 64 bytes
  CUtensorMap y;      // [M, N] T
  LinearArgs of;
  int32_t x_rows;  // brought into a stage; the rest of a stage belongs to tokens that are not stored
  int32_t stages;  // along K
  Sm90Grid grid;   // down: tiles of tokens; across: tiles of rows of W
};

/// Offsets into the block's shared memory.
struct Sm90Shared {
  uint32_t base;

  using Stages = Ring<Sm90Tile::kStages, Sm90Tile::kXBytes, Sm90Tile::kWBytes>;
  __device__ __forceinline__ Stages stages() const { return {base, base + Sm90Tile::kBarrierOffset}; }
  __device__ __forceinline__ uint32_t staging(int warpgroup, int buffer) const {
    return base + Sm90Tile::kStagingOffset + (2 * warpgroup + buffer) * Sm90Tile::kStoreBytes;
  }
};

/// One thread: fill the ring for every tile of Y.
__device__ __forceinline__ void produce(Sm90Args const& args, Sm90Shared const& shared) {
  auto const stages = shared.stages();
  RingPosition<Sm90Tile::kStages> at;
  TileWalk<Sm90Tile::kTokens, kSm90Rows> walk(args.grid);
  int token, row;
  while (walk.next(token, row)) {
    for (int i = 0; i < args.stages; ++i) {
      uint32_t const barrier = stages.full(at.stage);
      stages.acquire(at, args.x_rows * kSm90Columns + Sm90Tile::kWBytes);
      tma_load(stages.w(at.stage), &args.codes, barrier, i * kSm90CodeBytes, row);
      tma_load(stages.x(at.stage), &args.x, barrier, i * kSm90Columns, token);
      at.advance();
    }
  }
}

/// One warpgroup that multiplies: 64 rows of W of every tile of Y.
template <class Decoder>
class Sm90Consumer {
  using Product = Wgmma<Sm90Tile::kTokens>;
  static constexpr int kSums = Sm90Tile::kTokens / 2;
  static constexpr int kSteps = kSm90Segment / kWgmmaStepBytes;  // products of a segment
  static constexpr int kPlanes = Decoder::kPlanes;

  /// Registers of A for a segment.
  using Segment = uint32_t[kPlanes][kSteps][4];
  /// What the sums of this lane's two rows are multiplied with.
  using Weights = float[2][kPlanes];

  /// Scales and types of this lane's two rows and a segment, as loaded.
  struct Group {
    uint16_t scale[2];
    uint32_t types[2];
  };

 public:
  __device__ __forceinline__ Sm90Consumer(Sm90Args const& args, Sm90Shared const& shared, uint32_t table,
                                          int warpgroup)
      : args_(args),
        shared_(shared),
        table_(table),
        warpgroup_(warpgroup),
        row_(warpgroup * kWgmmaRows + warp_ * 16 + lane_ / 4) {}

  __device__ __forceinline__ void run() {
    TileWalk<Sm90Tile::kTokens, kSm90Rows> walk(args_.grid);
    int token, row;
    while (walk.next(token, row)) {
      multiply(row);
      store(token, row + warpgroup_ * kWgmmaRows);
    }
    if (is_leader()) bulk_wait_read<0>();
  }

 private:
  __device__ __forceinline__ bool is_leader() const { return threadIdx.x % kWarpgroup == 0; }

  /// total = products of the tile whose first row of W is `row`, scaled by group. Segments take turns with two sets of
  /// registers: one is decoded while the products of the other run. Scales and types are loaded a stage ahead.
  __device__ __forceinline__ void multiply(int row) {
#pragma unroll
    for (float& total : total_) total = 0.0f;
#pragma unroll
    for (int r = 0; r < 2; ++r) channel_[r] = min(row + row_ + 8 * r, static_cast<int>(args_.of.n) - 1);
    Segment a[Sm90Tile::kSegments];
    Group groups[Sm90Tile::kSegments];
    Weights weights[Sm90Tile::kSegments] = {};
#pragma unroll
    for (int s = 0; s < Sm90Tile::kSegments; ++s) load_group(groups[s], s);
    int previous = -1;
#pragma unroll 1
    for (int i = 0; i < args_.stages; ++i) {
      mbarrier_wait(shared_.stages().full(at_.stage), at_.parity);
#pragma unroll
      for (int s = 0; s < Sm90Tile::kSegments; ++s) {
        decode(a[s], weights[s], groups[s], s);
        load_group(groups[s], (i + 1) * Sm90Tile::kSegments + s);
        if (i > 0 || s > 0) finish(weights[1 - s], kPlanes - 1);
        if (s == 0) {  // nobody reads the stage before any more
          if (previous >= 0) release(previous);
          previous = at_.stage;
        }
        start(a[s][0], s);
#pragma unroll
        for (int p = 1; p < kPlanes; ++p) {
          finish(weights[s], p - 1);
          start(a[s][p], s);
        }
      }
      at_.advance();
    }
    finish(weights[Sm90Tile::kSegments - 1], kPlanes - 1);
    release(previous);
  }

  /// Start loading scales and types of segment `segment` of K, or of the last one there is.
  __device__ __forceinline__ void load_group(Group& of, int segment) const {
    int64_t const group = min((segment * kSm90Segment) >> args_.of.group_shift, args_.of.groups - 1);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      int const n = channel_[r];
      __half const* scale = args_.of.scale + group * args_.of.n + n;
      int8_t const* types = args_.of.types + group * args_.of.type_bytes + n / 32 * 16 + n % 16;
      asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(of.scale[r]) : "l"(scale));
      asm volatile("ld.global.nc.u8 %0, [%1];" : "=r"(of.types[r]) : "l"(types));
    }
  }

  /// Numbers of segment `s` of the current stage, and what its sums are multiplied with.
  __device__ __forceinline__ void decode(Segment& a, Weights& weights, Group const& group, int s) const {
    // 64 bytes of a row, in chunks of 16 that are swizzled: number ^ (row / 2 % 4).
    uint32_t const codes = shared_.stages().w(at_.stage) + row_ * kSm90CodeBytes;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      int const type = static_cast<int>(group.types[r] >> (channel_[r] / 16 % 2 * 4)) & 15;
      Decoder::weight(weights[r], __half2float(__ushort_as_half(group.scale[r])), table_, type);
      typename Decoder::Row row;
      Decoder::load(row, table_, type);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        uint32_t const chunk = codes + 8 * r * kSm90CodeBytes + (((2 * s + c) ^ (row_ / 2 % 4)) * 16);
        uint32_t first[kPlanes], second[kPlanes], word;
        asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(chunk + lane_ % 4 * 4) : "memory");
        Decoder::decode(first, second, row, word);
#pragma unroll
        for (int p = 0; p < kPlanes; ++p) a[p][c][r] = first[p], a[p][c][2 + r] = second[p];
      }
    }
  }

  /// Start the products of a plane of segment `s` of the current stage.
  __device__ __forceinline__ void start(uint32_t (&a)[kSteps][4], int s) {
    constexpr int kStepAddress = kWgmmaStepBytes / 16;
    uint64_t const x = wgmma_descriptor(shared_.stages().x(at_.stage)) + s * kSteps * kStepAddress;
#pragma unroll
    for (int k = 0; k < kSteps; ++k) wgmma_pin(a[k]);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kSteps; ++k) Product::s8(sum_, a[k], x + k * kStepAddress, k > 0);
    wgmma_commit();
  }

  /// Wait for the products of plane `p` and add their sums to the totals.
  __device__ __forceinline__ void finish(Weights const& weights, int p) {
    wgmma_wait<0>();
    wgmma_pin(sum_);
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      total_[i] += weights[i / 2 % 2][p] * __int2float_rn(static_cast<int32_t>(sum_[i]));
    }
  }

  /// Tell the producer that this warp has read the stage.
  __device__ __forceinline__ void release(int stage) const {
    __syncwarp();
    if (lane_ == 0) mbarrier_arrive(shared_.stages().empty(stage));
  }

  /// Tokens of 64 rows of W, kStoreTokens at a time, through two buffers of shared memory.
  __device__ __forceinline__ void store(int token, int row) {
    float const scale[2] = {1.0f, 1.0f};
    float bias[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) bias[h] = load_activation(args_.of.bias, channel_[h], args_.of.dtype);
    store_tokens<Sm90Tile::kTokens, Sm90Tile::kStoreTokens>(
        args_.y, static_cast<int>(args_.of.m), warpgroup_, is_leader(), buffer_, token, row,
        [&](int turn) { return shared_.staging(warpgroup_, turn); },
        [&](int c, int first, uint32_t place) {
          stage_result<Sm90Tile::kStoreTokens>(args_.of, place, first, scale, bias,
                                             [&](int i) { return total_[c * (Sm90Tile::kStoreTokens / 2) + i]; });
        });
  }

  Sm90Args const& args_;
  Sm90Shared const shared_;
  uint32_t const table_;
  int const warp_ = static_cast<int>(threadIdx.x) / 32 % 4;
  int const lane_ = static_cast<int>(threadIdx.x) % 32;
  int const warpgroup_;
  int const row_;  // this lane's first of the tile's rows of W; the second is 8 further on
  int channel_[2];  // their numbers, none beyond the last
  RingPosition<Sm90Tile::kStages> at_;
  int buffer_ = 0;
  uint32_t sum_[kSums];
  float total_[kSums];
};

template <class Decoder>
__global__ void __launch_bounds__(Sm90Tile::kThreads, 1) linear_sm90(__grid_constant__ Sm90Args const args) {
  extern __shared__ __align__(1024) uint8_t memory[];
  Sm90Shared const shared{shared_address(memory)};
  int const warp = static_cast<int>(threadIdx.x) / 32;

  if (threadIdx.x == 0) {
    for (CUtensorMap const* map : {&args.x, &args.codes, &args.y}) prefetch_tensor_map(map);
    shared.stages().init(Sm90Tile::kReaderWarps);
    mbarrier_init_fence();
  }
  Decoder::fill(reinterpret_cast<uint4*>(memory + Sm90Tile::kTableOffset), args.of, static_cast<int>(threadIdx.x));
  __syncthreads();

  if (warp < kWarpgroup / 32) {
    release_registers<kSm90ProducerRegisters>();
    if (threadIdx.x == 0) produce(args, shared);
    __syncwarp();
  } else {
    claim_registers<kSm90ConsumerRegisters>();
    Sm90Consumer<Decoder>(args, shared, shared.base + Sm90Tile::kTableOffset, warp / 4 - 1).run();
  }
}

}  // namespace graphopt::mant
