// MixQ linear with 4-bit weights on Hopper: wgmma fed by the copy engine, one persistent block per multiprocessor.
//
// Y^T = W X^T: wgmma takes its A operand from registers, and packed codes lie there as it wants them, so the rows of
// its product are rows of W and its columns tokens. Three warpgroups: the first brings tiles in, the other two multiply
// 64 rows of W each:
//
//     codes of K     ... | ... | ... |   4-bit -> int8 in registers; int32 sums (wgmma s8)
//     y = sums sx sw                     in place: int32 and float32 sums have the same register layout
//     outliers of C  ... |               float32 sums (wgmma f16 or bf16, both operands from shared memory)
//     T(y + bias + residual) -> transposed in shared memory -> copy engine
//
// The codes of a stage are decoded while the products of the stage before run: two sets of registers take turns.
#pragma once

#include <cstdint>

#include "common/ptx.cuh"
#include "common/sm90_convert.cuh"
#include "common/sm90_grid.h"
#include "common/sm90_residual.cuh"
#include "common/sm90_ring.cuh"
#include "common/sm90_store.cuh"
#include "common/wgmma.cuh"
#include "mixq/linear_w4a8/codes.cuh"
#include "mixq/linear_w4a8/sm90_tile.h"

namespace graphopt::mixq {

/// Operands of the kernel; lives in constant memory, where the copy engine wants its tensor maps.
template <class T>
struct Sm90W4Args {
  CUtensorMap xq;  // [M, K] int8, rows of 128 bytes
  CUtensorMap wq;  // [N, row_bytes] packed, rows of 64 bytes, as the next two
  CUtensorMap xo;  // [M, C] T
  CUtensorMap wo;  // [N, C] T
  CUtensorMap y;   // [M, N] T
  CUtensorMap residual;  // [M, N] T
  float const* sx;    // [M]
  uint8_t const* sg;  // [groups, N]
  float const* sw;    // [N]
  T const* bias;      // [N]
  int32_t m;
  int32_t n;
  uint32_t residual_bytes;  // of a box of the residual, 0 if there is none
  int32_t x_rows;         // brought into a stage; the rest of a stage belongs to tokens that are not stored
  int32_t code_stages;     // along K
  int32_t outlier_stages;  // along C
  int32_t group_shift;
  int32_t last_group;
  int32_t prefetched;  // stages of W that each block brings into L2 while the kernel before ends
  Sm90Grid grid;  // down: tiles of tokens; across: clusters of rows of W
};

/// Offsets into the block's shared memory.
template <class Traits>
struct Sm90W4Shared {
  using Stages = Ring<Traits::kStages, Traits::kXBytes, Traits::kWBytes>;

  uint32_t base;

  __device__ __forceinline__ Stages stages() const { return {base, base + Traits::kBarrierOffset}; }
  __device__ __forceinline__ uint32_t staging(int warpgroup, int buffer) const {
    return base + Traits::kStagingOffset + (2 * warpgroup + buffer) * Traits::kStoreBytes;
  }
  /// Sums of block `rank` of the cluster, which is not the first.
  __device__ __forceinline__ uint32_t part(int rank) const {
    return base + Traits::kPartsOffset + (rank - 1) * Traits::kPartBytes;
  }
  __device__ __forceinline__ uint32_t sx() const { return base + Traits::kSxOffset; }
  __device__ __forceinline__ uint32_t sx_full() const { return stages().full(2 * Traits::kStages); }
  __device__ __forceinline__ uint32_t sx_empty() const { return sx_full() + 8; }
  __device__ __forceinline__ uint32_t parts_full() const { return sx_full() + 16; }
  __device__ __forceinline__ uint32_t residual_full(int warpgroup) const { return parts_full() + 8 + 16 * warpgroup; }
};

/// The tiles of one block, every `clusters`-th one in the order of Sm90Grid, and its part of K.
template <class Tile>
class W4TileWalk {
 public:
  __device__ __forceinline__ explicit W4TileWalk(Sm90Grid const& grid)
      : grid_(grid),
        rank_(Tile::kSplit == 1 ? 0 : static_cast<int>(cluster_rank())),
        clusters_(static_cast<int>(gridDim.x) / Tile::kSplit),
        index_(static_cast<int>(blockIdx.x) / Tile::kSplit) {}

  /// Whether there is another tile; then `token` and `row` are its first token and row of W.
  __device__ __forceinline__ bool next(int& token, int& row) {
    if (index_ >= grid_.clusters()) return false;
    Sm90Grid::Cell const cell = grid_.cell(index_);
    index_ += clusters_;
    token = cell.down * Tile::kTokens;
    row = cell.across * Tile::kRows;
    return true;
  }

  __device__ __forceinline__ int rank() const { return rank_; }

  /// This block's stages of codes, out of `stages`: from begin to end, which may be equal.
  __device__ __forceinline__ int begin(int stages) const { return stages * rank_ / Tile::kSplit; }
  __device__ __forceinline__ int end(int stages) const { return stages * (rank_ + 1) / Tile::kSplit; }
  /// Whether this block stores the sums.
  __device__ __forceinline__ bool leads() const { return rank_ == 0; }

 private:
  Sm90Grid const& grid_;
  int const rank_;
  int const clusters_;
  int index_;
};

/// One thread: bring what the block loads first of W into L2.
template <class Tile, class Args>
__device__ __forceinline__ void prefetch_codes(Args const& args) {
  W4TileWalk<Tile> walk(args.grid);
  int token, row;
  if (!walk.next(token, row)) return;
  int const first = walk.begin(args.code_stages);
  int const end = min(walk.end(args.code_stages), first + args.prefetched);
  for (int i = first; i < end; ++i) tma_prefetch(&args.wq, i * kCodeRowBytes, row);
}

/// One warp: bring the integer scales of the block's first rows of W into L2. They come from memory stage by stage
/// otherwise, each later than the products of a stage take.
template <class Tile, class Args>
__device__ __forceinline__ void prefetch_scales(Args const& args) {
  W4TileWalk<Tile> walk(args.grid);
  int token, row;
  if (!walk.next(token, row)) return;
  int const first = walk.begin(args.code_stages) * kStageColumns >> args.group_shift;
  int const last = min(args.last_group, (walk.end(args.code_stages) * kStageColumns - 1) >> args.group_shift);
  for (int group = first + static_cast<int>(threadIdx.x) % 32; group <= last; group += 32) {
    prefetch_line(args.sg + int64_t{group} * args.n + row);
  }
}

/// One thread: fill the ring for every tile of Y.
template <class T, class Traits>
class Sm90W4Producer {
  using Tile = typename Traits::Tile;

 public:
  __device__ __forceinline__ Sm90W4Producer(Sm90W4Args<T> const& args, Sm90W4Shared<Traits> const& shared)
      : args_(args), stages_(shared.stages()) {}

  __device__ __forceinline__ void run() {
    W4TileWalk<Tile> walk(args_.grid);
    int token, row;
    while (walk.next(token, row)) {
      for (int i = walk.begin(args_.code_stages); i < walk.end(args_.code_stages); ++i) {
        fill<kStageColumns>(&args_.xq, &args_.wq, i * kStageColumns, i * kCodeRowBytes, token, row);
      }
      if (!walk.leads()) continue;
      for (int i = 0; i < args_.outlier_stages; ++i) {
        int const channel = i * Traits::kStageOutliers;
        fill<kCodeRowBytes>(&args_.xo, &args_.wo, channel, channel, token, row);
      }
    }
  }

 private:
  /// Fill the next stage: columns from `x_column` and `w_column`; rows of X have kXRowBytes in a stage.
  template <int kXRowBytes>
  __device__ __forceinline__ void fill(CUtensorMap const* x, CUtensorMap const* w, int x_column, int w_column,
                                       int token, int row) {
    uint32_t const barrier = stages_.full(at_.stage);
    stages_.acquire(at_, args_.x_rows * kXRowBytes + Traits::kWBytes);
    tma_load(stages_.x(at_.stage), x, barrier, x_column, token);
    tma_load(stages_.w(at_.stage), w, barrier, w_column, row);
    at_.advance();
  }

  Sm90W4Args<T> const& args_;
  typename Sm90W4Shared<Traits>::Stages const stages_;
  RingPosition<Traits::kStages> at_;
};

/// One warp: bring sx of every tile's tokens.
template <class T, class Traits>
__device__ __forceinline__ void produce_sx(Sm90W4Args<T> const& args, Sm90W4Shared<Traits> const& shared) {
  using Tile = typename Traits::Tile;
  W4TileWalk<Tile> walk(args.grid);
  if (!walk.leads()) return;
  int token, row;
  for (uint32_t parity = 0; walk.next(token, row); parity ^= 1) {
    mbarrier_wait(shared.sx_empty(), parity ^ 1);
    for (int i = static_cast<int>(threadIdx.x) % 32; i < Tile::kTokens; i += 32) {
      float const scale = token + i < args.m ? __ldg(args.sx + token + i) : 0.0f;
      asm volatile("st.shared.f32 [%0], %1;" ::"r"(shared.sx() + 4 * i), "f"(scale) : "memory");
    }
    mbarrier_arrive(shared.sx_full());
  }
}

/// One warpgroup that multiplies: 64 rows of W of every tile of Y.
template <class T, class Traits>
class Sm90W4Consumer {
 public:
  using Tile = typename Traits::Tile;
  using Product = Wgmma<Tile::kTokens>;

  __device__ __forceinline__ Sm90W4Consumer(Sm90W4Args<T> const& args, Sm90W4Shared<Traits> const& shared,
                                            int warpgroup)
      : args_(args),
        shared_(shared),
        stages_(shared.stages()),
        warpgroup_(warpgroup),
        residual_(&args.residual, args.residual_bytes, shared.residual_full(warpgroup), is_leader()),
        lane_row_(warp_ * 16 + lane_ / 4),
        word_(warpgroup * kWgmmaRows * kCodeRowBytes + lane_row_ * kCodeRowBytes + lane_row_ / 2 % 4 * 16 +
              lane_ % 4 * 4) {}

  __device__ __forceinline__ void run() {
    W4TileWalk<Tile> walk(args_.grid);
    int token, row;
    while (walk.next(token, row)) {
      row += warpgroup_ * kWgmmaRows;
      load_row_values(row);
      if (walk.leads()) residual_.begin(buffer_, parts(token), BufferAt{shared_, warpgroup_}, PartAt{token, row});
      multiply_codes(walk.begin(args_.code_stages), walk.end(args_.code_stages), row);
      if constexpr (Tile::kSplit > 1) {
        if (!walk.leads()) return send_sums(walk.rank());
        mbarrier_wait_cluster(shared_.parts_full(), 0);
        add_sums();
      }
      mbarrier_wait(shared_.sx_full(), sx_parity_);
      sx_parity_ ^= 1;
      scale();
      // Every lane, for its own reads: once a tile, and an order that compute-sanitizer can follow.
      mbarrier_arrive(shared_.sx_empty());
      multiply_outliers();
      store(token, row);
    }
    if (is_leader()) bulk_wait_read<0>();
  }

 private:
  static constexpr int kHalfSteps = kStageColumns / 2 / kWgmmaStepBytes;  // products of half a stage

  /// Registers of A for half a stage.
  using Half = uint32_t[4 * kHalfSteps];

  struct BufferAt {
    Sm90W4Shared<Traits> const& shared;
    int warpgroup;
    __device__ __forceinline__ uint32_t operator()(int turn) const { return shared.staging(warpgroup, turn); }
  };

  /// The first column and row in Y of a part of the tile.
  struct PartAt {
    int token, row;
    __device__ __forceinline__ int2 operator()(int part) const { return {row, token + part * Traits::kStoreTokens}; }
  };

  /// Y is stored in parts of kStoreTokens tokens; those of a tile from `token` on.
  __device__ __forceinline__ int parts(int token) const {
    return (min(Tile::kTokens, args_.m - token) + Traits::kStoreTokens - 1) / Traits::kStoreTokens;
  }

  __device__ __forceinline__ static bool is_leader() { return threadIdx.x % kWarpgroup == 0; }
  __device__ __forceinline__ int clamped(int row) const { return min(row, args_.n - 1); }

  /// Scales and biases of this lane's rows. Volatile, so that the loads start here and end under the products.
  __device__ __forceinline__ void load_row_values(int row) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      int const at = clamped(row + lane_row_ + 8 * h);
      sw_[h] = load_early(args_.sw + at);
      asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(bias_[h]) : "l"(args_.bias + at));
    }
  }

  /// sums = xq wc^T over stages begin..end of K. Halves of a stage take turns with two sets of registers: one is
  /// decoded while the products of the other run.
  __device__ __forceinline__ void multiply_codes(int begin, int end, int row) {
    scale_rows_[0] = args_.sg + clamped(row + lane_row_);
    scale_rows_[1] = args_.sg + clamped(row + lane_row_ + 8);
    Half first, second;
    // Scales of this stage and of the next, [half][row]: they take longer to arrive than the products of a stage.
    uint32_t scales[2][2], later[2][2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      load_scales(scales[h], 2 * begin + h);
      load_scales(later[h], 2 * begin + 2 + h);
    }
    int previous = -1;
    if (Tile::kSplit > 1 && begin == end) clear_sums();
    wgmma_pin(sum_);
    // By twos, so that the sets of scales change their roles instead of being copied, which would wait for them.
#pragma unroll 2
    for (int i = begin; i < end; ++i) {
      mbarrier_wait(stages_.full(at_.stage), at_.parity);
      uint32_t const codes = stages_.w(at_.stage) + word_;
      uint64_t const x = wgmma_descriptor(stages_.x(at_.stage));
      decode<0>(first, scales[0], codes);
      advance_scales(scales[0], later[0], 2 * i + 4);
      start_products(first, x, i > begin);
      if (previous >= 0) release(previous);
      decode<1>(second, scales[1], codes);
      advance_scales(scales[1], later[1], 2 * i + 5);
      start_products(second, x + kHalfSteps * (kWgmmaStepBytes / 16), true);
      previous = at_.stage;
      at_.advance();
    }
    wgmma_wait<0>();
    wgmma_pin(sum_);
    if (previous >= 0) release(previous);
  }

  __device__ __forceinline__ void clear_sums() {
#pragma unroll
    for (uint32_t& sum : sum_) sum = 0;
  }

  /// Integer scales of this lane's two rows of W in a half of a stage.
  __device__ __forceinline__ void load_scales(uint32_t (&scales)[2], int half) const {
    int const group = (half * (kStageColumns / 2)) >> args_.group_shift;
    int64_t const offset = int64_t{min(group, args_.last_group)} * args_.n;
#pragma unroll
    for (int r = 0; r < 2; ++r) scales[r] = load_byte(scale_rows_[r] + offset);
  }

  __device__ __forceinline__ void advance_scales(uint32_t (&scales)[2], uint32_t (&later)[2], int half) const {
    scales[0] = later[0];
    scales[1] = later[1];
    load_scales(later, half);
  }

  /// The int8 codes of half a stage: 32 bytes of two rows, of which this lane takes the word of every 16 that feeds it.
  template <int kHalf>
  __device__ __forceinline__ void decode(Half& a, uint32_t const (&scales)[2], uint32_t shared) const {
    uint32_t word[kHalfSteps][2];
#pragma unroll
    for (int s = 0; s < kHalfSteps; ++s) {
      // The chunk of 16 bytes is swizzled: its number ^ (row / 2 % 4), the latter being part of `shared`.
      uint32_t const at = shared ^ (16 * (kHalf * kHalfSteps + s));
      asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word[s][0]) : "r"(at) : "memory");
      asm volatile("ld.shared.u32 %0, [%1+%2];" : "=r"(word[s][1]) : "r"(at), "n"(8 * kCodeRowBytes) : "memory");
    }
    GroupScale const upper(scales[0]), lower(scales[1]);
#pragma unroll
    for (int s = 0; s < kHalfSteps; ++s) {
      a[4 * s] = upper.low(word[s][0]);
      a[4 * s + 1] = lower.low(word[s][1]);
      a[4 * s + 2] = upper.high(word[s][0]);
      a[4 * s + 3] = lower.high(word[s][1]);
    }
  }

  /// Start the products of half a stage and wait for those of the half before.
  __device__ __forceinline__ void start_products(Half& a, uint64_t x, bool accumulate) {
    wgmma_pin(a);  // decoded before the fence
    wgmma_fence();
#pragma unroll
    for (int s = 0; s < kHalfSteps; ++s) {
      Product::s8(sum_, a + 4 * s, x + s * (kWgmmaStepBytes / 16), accumulate || s > 0);
    }
    wgmma_commit();
    wgmma_wait<1>();
  }

  /// Tell the producer that this warp has read the stage.
  __device__ __forceinline__ void release(int stage) const {
    __syncwarp();
    if (lane_ == 0) mbarrier_arrive(stages_.empty(stage));
  }

  /// Where a block leaves the sums of this thread, four by four.
  __device__ __forceinline__ uint32_t part(int rank, int i) const {
    constexpr int kReaders = kWarpgroup * Traits::kConsumers;
    int const reader = warpgroup_ * kWarpgroup + static_cast<int>(threadIdx.x) % kWarpgroup;
    return shared_.part(rank) + 16 * (i * kReaders + reader);
  }

  /// Give the sums to the first block of the cluster.
  __device__ __forceinline__ void send_sums(int rank) const {
    uint32_t const barrier = address_at(shared_.parts_full(), 0);
#pragma unroll
    for (int i = 0; i < Traits::kSums / 4; ++i) {
      store_async(address_at(part(rank, i), 0), barrier, sum_[4 * i], sum_[4 * i + 1], sum_[4 * i + 2],
                  sum_[4 * i + 3]);
    }
  }

  __device__ __forceinline__ void add_sums() {
#pragma unroll
    for (int rank = 1; rank < Tile::kSplit; ++rank) {
#pragma unroll
      for (int i = 0; i < Traits::kSums / 4; ++i) {
        uint32_t word[4];
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
                     : "r"(part(rank, i))
                     : "memory");
#pragma unroll
        for (int e = 0; e < 4; ++e) sum_[4 * i + e] += word[e];
      }
    }
  }

  /// int32 sums -> float32 sums times sx sw, in place.
  __device__ __forceinline__ void scale() {
#pragma unroll
    for (int j = 0; j < Tile::kTokens / 8; ++j) {
      float sx[2];
      uint32_t const at = shared_.sx() + (8 * j + 2 * (lane_ % 4)) * sizeof(float);
      asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(sx[0]), "=f"(sx[1]) : "r"(at) : "memory");
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint32_t& sum = sum_[4 * j + i];
        sum = __float_as_uint(__int2float_rn(static_cast<int32_t>(sum)) * (sx[i % 2] * sw_[i / 2]));
      }
    }
  }

  /// sums += xo wo^T.
  __device__ __forceinline__ void multiply_outliers() {
    int previous = -1;
    wgmma_pin(sum_);
#pragma unroll 1
    for (int i = 0; i < args_.outlier_stages; ++i) {
      mbarrier_wait(stages_.full(at_.stage), at_.parity);
      uint32_t const rows = stages_.w(at_.stage) + warpgroup_ * kWgmmaRows * kCodeRowBytes;
      uint64_t const w = wgmma_descriptor<kCodeRowBytes>(rows);
      uint64_t const x = wgmma_descriptor<kCodeRowBytes>(stages_.x(at_.stage));
      wgmma_fence();
#pragma unroll
      for (int s = 0; s < kCodeRowBytes / kWgmmaStepBytes; ++s) {
        Product::product(sum_, w + s * (kWgmmaStepBytes / 16), x + s * (kWgmmaStepBytes / 16), true, T{});
      }
      wgmma_commit();
      wgmma_wait<1>();
      if (previous >= 0) release(previous);
      previous = at_.stage;
      at_.advance();
    }
    wgmma_wait<0>();
    wgmma_pin(sum_);
    release(previous);
  }

  /// y = T(sums + bias + residual), kStoreTokens tokens of 64 rows of W at a time, through two buffers of shared memory.
  __device__ __forceinline__ void store(int token, int row) {
    T bias[2];
    memcpy(bias, bias_, sizeof(bias));
    PartAt const at{token, row};
    int const count = parts(token);
#pragma unroll
    for (int part = 0; part < Tile::kTokens / Traits::kStoreTokens; ++part) {
      if (part >= count) break;
      uint32_t const buffer = shared_.staging(warpgroup_, buffer_);
      if (residual_.exists()) {
        residual_.wait(buffer_);
      } else {
        acquire_buffer(warpgroup_, is_leader());
      }
      stage_tokens(part, to_float(bias[0]), to_float(bias[1]), buffer);
      store_buffer(args_.y, warpgroup_, is_leader(), buffer, at(part).x, at(part).y);
      residual_.advance(buffer_, buffer, part, count, at);
      buffer_ ^= 1;
    }
  }

  /// Tokens kStoreTokens c.. of 64 rows of W, swizzled as the copy engine expects: chunk of 16 bytes ^ (token % 8).
  __device__ __forceinline__ void stage_tokens(int c, float upper_bias, float lower_bias, uint32_t buffer) const {
    int const chunk = 2 * warp_ + lane_ / 8 % 2;
#pragma unroll
    for (int q = 0; q < Traits::kStoreTokens / 16; ++q) {
      int const token = 16 * q + lane_ / 16 * 8 + lane_ % 8;
      uint32_t const place = buffer + token * 128 + ((chunk ^ (lane_ % 8)) * 16);
      uint32_t word[4], residual[4];
      if (residual_.exists()) ldmatrix_x4_trans(residual, place);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint32_t const* sum = sum_ + 4 * (c * Traits::kStoreTokens / 8 + 2 * q + i / 2) + 2 * (i % 2);
        float const bias = i % 2 == 0 ? upper_bias : lower_bias;
        float low = __uint_as_float(sum[0]) + bias, high = __uint_as_float(sum[1]) + bias;
        if (residual_.exists()) {
          float2 const more = unpack(residual[i], T{});
          low += more.x, high += more.y;
        }
        word[i] = pack(low, high, T{});
      }
      stmatrix_x4_transposed(place, word[0], word[1], word[2], word[3]);
    }
  }

  Sm90W4Args<T> const& args_;
  Sm90W4Shared<Traits> const shared_;
  typename Sm90W4Shared<Traits>::Stages const stages_;
  int const warp_ = static_cast<int>(threadIdx.x) / 32 % 4;
  int const lane_ = static_cast<int>(threadIdx.x) % 32;
  int const warpgroup_;
  Sm90Residual residual_;
  int const lane_row_;   // of the 64
  uint32_t const word_;  // offset of the lane's word of the first chunk of its first row in a stage's W
  RingPosition<Traits::kStages> at_;
  uint32_t sx_parity_ = 0;
  int buffer_ = 0;
  uint8_t const* scale_rows_[2];  // of group 0
  float sw_[2];
  uint16_t bias_[2];
  uint32_t sum_[Traits::kSums];
};

template <class T, class Tile>
__global__ void __launch_bounds__(Sm90W4Traits<T, Tile>::kThreads, 1)
    linear_w4a8_sm90(__grid_constant__ Sm90W4Args<T> const args) {
  using Traits = Sm90W4Traits<T, Tile>;
  extern __shared__ __align__(1024) uint8_t memory[];
  Sm90W4Shared<Traits> const shared{shared_address(memory)};
  int const warp = static_cast<int>(threadIdx.x) / 32;
  bool const first_lane = threadIdx.x % 32 == 0;

  if (threadIdx.x == 0) {
    for (CUtensorMap const* map : {&args.xq, &args.wq, &args.xo, &args.wo, &args.y}) prefetch_tensor_map(map);
    shared.stages().init(Traits::kReaderWarps);
    mbarrier_init(shared.sx_full(), 32);
    mbarrier_init(shared.sx_empty(), 32 * Traits::kReaderWarps);
    mbarrier_init(shared.parts_full(), 1);
    for (int warpgroup = 0; warpgroup < Traits::kConsumers; ++warpgroup) {
      Sm90Residual::init(shared.residual_full(warpgroup));
    }
    mbarrier_init_fence();
    if constexpr (Tile::kSplit > 1) mbarrier_arrive_expect(shared.parts_full(), Traits::kPartsBytes);
    prefetch_codes<Tile>(args);
  }
  if (warp == 2) prefetch_scales<Tile>(args);
  if constexpr (Tile::kSplit > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }

  wait_for_predecessor();
  release_successor();

  if (warp < kWarpgroup / 32) {
    if constexpr (Traits::kMovesRegisters) release_registers<Traits::kProducerRegisters>();
    if (warp == 0 && first_lane) Sm90W4Producer<T, Traits>(args, shared).run();
    if (warp == 1) produce_sx(args, shared);
    __syncwarp();
  } else {
    if constexpr (Traits::kMovesRegisters) claim_registers<Traits::kConsumerRegisters>();
    Sm90W4Consumer<T, Traits>(args, shared, warp / 4 - 1).run();
  }
}

}  // namespace graphopt::mixq
