// M-ANT linear on Hopper: wgmma fed by the copy engine, one persistent block per multiprocessor.
//
// Yᵀ = W Xᵀ: wgmma takes its A operand from registers, where codes become numbers, so the rows of its product are rows
// of W and its columns tokens. Three warpgroups: the first brings tiles in, the other two multiply 64 rows of W each:
//
//     64 columns  ... | ... | ... |   codes -> numbers in registers; sums of this group (wgmma)
//                     |     |         total += scale * sums
//     T(total sx + bias) -> transposed in shared memory -> copy engine
//
// While one warpgroup decodes and scales, the products of the other run. Numbers of 16 bits take the scale with them,
// so that their sums go on over all of K, need no second set of registers, and tiles are twice as large.
#pragma once

#include <cstdint>

#include "common/sm90_convert.cuh"
#include "common/sm90_grid.h"
#include "common/sm90_ring.cuh"
#include "common/wgmma.cuh"
#include "mant/linear/sm90_codes.cuh"
#include "mant/linear/sm90_tile.h"

namespace graphopt::mant {

/// Operands of the kernel; lives in constant memory, where the copy engine wants its tensor maps.
struct Sm90Args {
  CUtensorMap x;      // [M, K], rows of 128 bytes
  CUtensorMap codes;  // [N, row_bytes], rows of 64 bytes
  CUtensorMap y;      // [M, N] T
  LinearArgs of;
  int32_t x_rows;  // brought into a stage; the rest of a stage belongs to tokens that are not stored
  int32_t stages;  // along K
  Sm90Grid grid;   // down: tiles of tokens; across: tiles of rows of W
};

/// Offsets into the block's shared memory.
template <class Traits>
struct Sm90Shared {
  uint32_t base;

  using Stages = Ring<Traits::kStages, Traits::kXBytesStage, Traits::kWBytes>;
  __device__ __forceinline__ Stages stages() const { return {base, base + Traits::kBarrierOffset}; }
  __device__ __forceinline__ uint32_t staging(int warpgroup, int buffer) const {
    return base + Traits::kStagingOffset + (2 * warpgroup + buffer) * Traits::kStoreBytes;
  }
};

/// The tiles of one block, every gridDim.x-th one in the order of Sm90Grid.
template <class Traits>
class TileWalk {
 public:
  __device__ __forceinline__ explicit TileWalk(Sm90Grid const& grid)
      : grid_(grid), index_(static_cast<int>(blockIdx.x)) {}

  /// Whether there is another tile; then `token` and `row` are its first token and row of W.
  __device__ __forceinline__ bool next(int& token, int& row) {
    if (index_ >= grid_.clusters()) return false;
    Sm90Grid::Cell const cell = grid_.cell(index_);
    index_ += static_cast<int>(gridDim.x);
    token = cell.down * Traits::kTokens;
    row = cell.across * kSm90Rows;
    return true;
  }

 private:
  Sm90Grid const& grid_;
  int index_;
};

/// One thread: fill the ring for every tile of Y.
template <class Traits>
__device__ __forceinline__ void produce(Sm90Args const& args, Sm90Shared<Traits> const& shared) {
  auto const stages = shared.stages();
  RingPosition<Traits::kStages> at;
  TileWalk<Traits> walk(args.grid);
  int token, row;
  while (walk.next(token, row)) {
    for (int i = 0; i < args.stages; ++i) {
      uint32_t const barrier = stages.full(at.stage);
      stages.acquire(at, args.x_rows * kSm90Columns * Traits::kXBytes + Traits::kWBytes);
      tma_load(stages.w(at.stage), &args.codes, barrier, i * kSm90CodeBytes, row);
#pragma unroll
      for (int box = 0; box < Traits::kBoxes; ++box) {
        int const column = i * kSm90Columns + box * (Traits::kBoxBytes / Traits::kXBytes);
        tma_load(stages.x(at.stage) + box * Traits::kTokens * Traits::kBoxBytes, &args.x, barrier, column, token);
      }
      at.advance();
    }
  }
}

/// One warpgroup that multiplies: 64 rows of W of every tile of Y. T: of x.
template <class T, class Decoder, class Traits>
class Sm90Consumer {
  using Product = Wgmma<Traits::kTokens>;
  static constexpr int kSums = Traits::kTokens / 2;
  static constexpr int kSteps = kSm90Segment * Traits::kXBytes / kWgmmaStepBytes;  // products of a segment
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
  __device__ __forceinline__ Sm90Consumer(Sm90Args const& args, Sm90Shared<Traits> const& shared, uint32_t table,
                                          int warpgroup)
      : args_(args),
        shared_(shared),
        table_(table),
        warpgroup_(warpgroup),
        row_(warpgroup * kWgmmaRows + warp_ * 16 + lane_ / 4) {}

  template <bool kSymmetric>
  __device__ __forceinline__ void run() {
    TileWalk<Traits> walk(args_.grid);
    int token, row;
    while (walk.next(token, row)) {
      multiply<kSymmetric>(row);
      store(token, row + warpgroup_ * kWgmmaRows);
    }
    if (is_leader()) bulk_wait_read<0>();
  }

 private:
  __device__ __forceinline__ bool is_leader() const { return threadIdx.x % kWarpgroup == 0; }

  /// total = products of the tile whose first row of W is `row`, scaled by group. Segments take turns with two sets of
  /// registers: one is decoded while the products of the other run. Scales and types are loaded a stage ahead.
  template <bool kSymmetric>
  __device__ __forceinline__ void multiply(int row) {
    if constexpr (!Decoder::kFolded) {
#pragma unroll
      for (float& total : total_) total = 0.0f;
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) channel_[r] = min(row + row_ + 8 * r, static_cast<int>(args_.of.n) - 1);
    Segment a[Traits::kSegments];
    Group groups[Traits::kSegments];
    Weights weights[Traits::kSegments] = {};
#pragma unroll
    for (int s = 0; s < Traits::kSegments; ++s) load_group(groups[s], s);
    int previous = -1;
#pragma unroll 1
    for (int i = 0; i < args_.stages; ++i) {
      mbarrier_wait(shared_.stages().full(at_.stage), at_.parity);
#pragma unroll
      for (int s = 0; s < Traits::kSegments; ++s) {
        decode<kSymmetric>(a[s], weights[s], groups[s], s);
        load_group(groups[s], (i + 1) * Traits::kSegments + s);
        if constexpr (Decoder::kFolded) {
          start(a[s][0], s, i > 0 || s > 0);
          wgmma_wait<1>();
        } else {
          if (i > 0 || s > 0) finish(weights[1 - s], kPlanes - 1);
        }
        if (s == 0) {  // nobody reads the stage before any more
          if (previous >= 0) release(previous);
          previous = at_.stage;
        }
        if constexpr (Decoder::kFolded) continue;
        start(a[s][0], s, false);
#pragma unroll
        for (int p = 1; p < kPlanes; ++p) {
          finish(weights[s], p - 1);
          start(a[s][p], s, false);
        }
      }
      at_.advance();
    }
    if constexpr (Decoder::kFolded) {
      wgmma_wait<0>();
      wgmma_pin(sum_);
    } else {
      finish(weights[Traits::kSegments - 1], kPlanes - 1);
    }
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
  template <bool kSymmetric>
  __device__ __forceinline__ void decode(Segment& a, Weights& weights, Group const& group, int s) const {
    // 64 bytes of a row, in chunks of 16 that are swizzled: number ^ (row / 2 % 4).
    uint32_t const codes = shared_.stages().w(at_.stage) + row_ * kSm90CodeBytes;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      int const type = static_cast<int>(group.types[r] >> (channel_[r] / 16 % 2 * 4)) & 15;
      Decoder::weight(weights[r], __half2float(__ushort_as_half(group.scale[r])), table_, type);
      typename Decoder::Row row;
      Decoder::template load<kSymmetric>(row, table_, type);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        uint32_t const chunk = codes + 8 * r * kSm90CodeBytes + (((2 * s + c) ^ (row_ / 2 % 4)) * 16);
        if constexpr (Traits::kXBytes == 2) {  // two steps of 16 columns
          uint32_t first[2], second[2];
          Decoder::template decode<kSymmetric>(first, second, row, load_pairs(chunk));
          Decoder::fold(first, weights[r][0]);
          Decoder::fold(second, weights[r][0]);
          a[0][2 * c][r] = first[0], a[0][2 * c][2 + r] = first[1];
          a[0][2 * c + 1][r] = second[0], a[0][2 * c + 1][2 + r] = second[1];
        } else {  // one of 32
          uint32_t first[kPlanes], second[kPlanes], word;
          asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(chunk + lane_ % 4 * 4) : "memory");
          Decoder::template decode<kSymmetric>(first, second, row, word);
#pragma unroll
          for (int p = 0; p < kPlanes; ++p) a[p][c][r] = first[p], a[p][c][2 + r] = second[p];
        }
      }
    }
  }

  /// Codes of columns 2 t, 2 t + 1, 8 + 2 t, 9 + 2 t and of those 16 further on.
  __device__ __forceinline__ uint32_t load_pairs(uint32_t chunk) const {
    uint16_t low, high;
    uint32_t const at = chunk + lane_ % 4 * 2;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(low) : "r"(at) : "memory");
    asm volatile("ld.shared.u16 %0, [%1+8];" : "=h"(high) : "r"(at) : "memory");
    return low | static_cast<uint32_t>(high) << 16;
  }

  /// Start the products of a plane of segment `s` of the current stage.
  __device__ __forceinline__ void start(uint32_t (&a)[kSteps][4], int s, bool accumulate) {
    constexpr int kStepAddress = kWgmmaStepBytes / 16;
    uint32_t const box = Traits::kBoxes == 1 ? 0 : s * Traits::kTokens * Traits::kBoxBytes;
    int const step = Traits::kBoxes == 1 ? s * kSteps : 0;
    uint64_t const x = wgmma_descriptor(shared_.stages().x(at_.stage) + box) + step * kStepAddress;
#pragma unroll
    for (int k = 0; k < kSteps; ++k) wgmma_pin(a[k]);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kSteps; ++k) start_product(a[k], x + k * kStepAddress, accumulate || k > 0);
    wgmma_commit();
  }

  __device__ __forceinline__ void start_product(uint32_t const (&a)[4], uint64_t x, bool accumulate) {
    if constexpr (Traits::kXBytes == 1) {
      Product::s8(sum_, a, x, accumulate);
    } else {
      Product::product(sum_, a, x, accumulate, T{});
    }
  }

  /// Wait for the products of plane `p` and add their sums to the totals.
  __device__ __forceinline__ void finish(Weights const& weights, int p) {
    wgmma_wait<0>();
    wgmma_pin(sum_);
#pragma unroll
    for (int i = 0; i < kSums; ++i) total_[i] += weights[i / 2 % 2][p] * Decoder::number(sum_[i]);
  }

  /// Tell the producer that this warp has read the stage.
  __device__ __forceinline__ void release(int stage) const {
    __syncwarp();
    if (lane_ == 0) mbarrier_arrive(shared_.stages().empty(stage));
  }

  __device__ __forceinline__ uint32_t rounded(float low, float high) const {
    return args_.of.dtype == DType::kFloat16 ? pack(low, high, __half{}) : pack(low, high, __nv_bfloat16{});
  }

  /// y = T(total sx + bias), kStoreTokens tokens of 64 rows of W at a time, through two buffers of shared memory.
  __device__ __forceinline__ void store(int token, int row) {
    float bias[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      int64_t const n = min(int64_t{row + row_ % kWgmmaRows + 8 * h}, args_.of.n - 1);
      bias[h] = load_activation(args_.of.bias, n, args_.of.dtype);
    }
#pragma unroll
    for (int c = 0; c < Traits::kTokens / Traits::kStoreTokens; ++c) {
      int const first = token + c * Traits::kStoreTokens;
      if (first >= args_.of.m) break;
      if (is_leader()) bulk_wait_read<1>();
      warpgroup_sync(1 + warpgroup_);
      uint32_t const buffer = shared_.staging(warpgroup_, buffer_);
      stage_tokens(c, first, bias, buffer);
      async_proxy_fence();
      warpgroup_sync(1 + warpgroup_);
      if (is_leader()) {
        tma_store(&args_.y, buffer, row, first);
        bulk_commit();
      }
      buffer_ ^= 1;
    }
  }

  __device__ __forceinline__ float token_scale(int token) const {
    if constexpr (Traits::kXBytes == 2) return 1.0f;
    return __ldg(args_.of.sx + min(int64_t{token}, args_.of.m - 1));
  }

  __device__ __forceinline__ float result(int i) const {
    if constexpr (Decoder::kFolded) {
      return __uint_as_float(sum_[i]);
    } else {
      return total_[i];
    }
  }

  /// Tokens kStoreTokens c.. of 64 rows of W, swizzled as the copy engine expects: chunk of 16 bytes ^ (token % 8).
  __device__ __forceinline__ void stage_tokens(int c, int token, float const (&bias)[2], uint32_t buffer) const {
    int const chunk = 2 * warp_ + lane_ / 8 % 2;
#pragma unroll
    for (int q = 0; q < Traits::kStoreTokens / 16; ++q) {
      uint32_t word[4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float total[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) total[e] = result(4 * (c * Traits::kStoreTokens / 8 + 2 * q + i) + e);
        int const at = token + 8 * (2 * q + i) + 2 * (lane_ % 4);
        float const sx[2] = {token_scale(at), token_scale(at + 1)};
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          word[2 * i + h] = rounded(fmaf(total[2 * h], sx[0], bias[h]), fmaf(total[2 * h + 1], sx[1], bias[h]));
        }
      }
      int const line = 16 * q + lane_ / 16 * 8 + lane_ % 8;
      stmatrix_x4_transposed(buffer + line * 128 + ((chunk ^ (lane_ % 8)) * 16), word[0], word[1], word[2], word[3]);
    }
  }

  Sm90Args const& args_;
  Sm90Shared<Traits> const shared_;
  uint32_t const table_;
  int const warp_ = static_cast<int>(threadIdx.x) / 32 % 4;
  int const lane_ = static_cast<int>(threadIdx.x) % 32;
  int const warpgroup_;
  int const row_;  // this lane's first of the tile's rows of W; the second is 8 further on
  int channel_[2];  // their numbers, none beyond the last
  RingPosition<Traits::kStages> at_;
  int buffer_ = 0;
  uint32_t sum_[kSums];
  float total_[Decoder::kFolded ? 1 : kSums];
};

template <class T, class Decoder, int kTokens>
__global__ void __launch_bounds__(Sm90Traits<kTokens, Decoder::kXBytes>::kThreads, 1)
    linear_sm90(__grid_constant__ Sm90Args const args) {
  using Traits = Sm90Traits<kTokens, Decoder::kXBytes>;
  // For 128 threads each, they fit the 64 K of a multiprocessor.
  constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  extern __shared__ __align__(1024) uint8_t memory[];
  Sm90Shared<Traits> const shared{shared_address(memory)};
  uint32_t const table = shared.base + Traits::kTableOffset;
  int const warp = static_cast<int>(threadIdx.x) / 32;

  if (threadIdx.x == 0) {
    for (CUtensorMap const* map : {&args.x, &args.codes, &args.y}) prefetch_tensor_map(map);
    shared.stages().init(Traits::kReaderWarps);
    mbarrier_init_fence();
  }
  auto* const entries = reinterpret_cast<uint4*>(memory + Traits::kTableOffset);
  bool const symmetric = __syncthreads_and(Decoder::fill(entries, args.of, static_cast<int>(threadIdx.x)));

  if (warp < kWarpgroup / 32) {
    release_registers<kProducerRegisters>();
    if (threadIdx.x == 0) produce(args, shared);
    __syncwarp();
  } else {
    claim_registers<kConsumerRegisters>();
    Sm90Consumer<T, Decoder, Traits> consumer(args, shared, table, warp / 4 - 1);
    if (Decoder::kXBytes == 1 || symmetric) {
      consumer.template run<true>();
    } else {
      consumer.template run<false>();
    }
  }
}

}  // namespace graphopt::mant
