// Hopper kernel for one token and trained codebooks of 4096 entries of eight, two codes a vector: products are looked
// up.
//
// As kernel_table.cuh, but the products of a group of eight columns with both codebooks are many, 8192. They are
// float16, for eight groups at a time, times a power of two that keeps them in range. A lane takes a whole row of a
// slice, 24 bytes of codes. So few bytes of a row make requests of memory the limit; the two blocks of a cluster have
// neighbouring slices, and the copy engine brings 48 bytes of a row to both of them.
//
// Tensor cores add: what a lane looks up is the lower half of a word of A, whose upper half is 0, and B says which
// words are whose, so that four look-ups are added, in float32, by one instruction.
//
//   copy engine:  | rows 0..511 | rows 512.. | ...   48 bytes a row into a ring, half of the rows by each block
//   16 warps:     | look up, add | ...               a row to a lane
#pragma once

#include <cstdint>

#include "common/sm90_ring.cuh"
#include "vq/linear/sm90_wide_table.cuh"

namespace graphopt::vq {

template <class T_>
struct WideShape {
  using T = T_;
  static constexpr bool kTiled = false;
  static constexpr int kBlocks = 2;            // of a cluster
  static constexpr int kIdle = 16;             // see table_blocks
  static constexpr int kRows = kTableThreads;  // of a unit
  static constexpr int kColumns = 8 * kWideGroups;
  static constexpr int kRowBytes = kColumns / 8 * 3;  // of codes, of a slice
  static constexpr int kPitch = 2 * kRowBytes;        // the copy engine takes multiples of 16 bytes
  static constexpr int kBoxRows = 256;
  static constexpr int kStageBytes = kRows * kPitch;
  static constexpr int kStages = 4;
  using Stages = Ring<kStages, 0, kStageBytes>;
  static constexpr int kThreads = kTableThreads + 32;  // one more warp starts copies
  static constexpr int kSharedBytes = kWideTableBytes + kStages * (kStageBytes + 16);
};

template <class T>
struct WideArgs {
  CUtensorMap codes;  // boxes of kBoxRows x kPitch
  TableArgs<T> table;
  WideWalk walk;
};

/// What a block has in shared memory, and its place among the blocks.
template <class Shape>
struct WideBlock {
  uint32_t table;
  typename Shape::Stages stages;
  int rank, cluster;

  __device__ __forceinline__ explicit WideBlock(uint32_t shared)
      : table(shared),
        stages{shared + kWideTableBytes, shared + kWideTableBytes + Shape::kStages * Shape::kStageBytes},
        rank(static_cast<int>(blockIdx.x) % Shape::kBlocks),
        cluster(static_cast<int>(blockIdx.x) / Shape::kBlocks) {}

  __device__ __forceinline__ int slice(int set) const { return set * Shape::kBlocks + rank; }
};

/// One thread brings the codes of all units.
template <class Shape>
__device__ __forceinline__ void bring_codes(WideArgs<typename Shape::T> const& args, WideBlock<Shape> const& block) {
  constexpr int kBoxBytes = Shape::kBoxRows * Shape::kPitch;
  WideWalk const& walk = args.walk;
  typename Shape::Stages::Position at;
  int const count = walk.count(block.cluster);
  auto const wait_until_read = [&] { mbarrier_wait(block.stages.empty(at.stage), at.parity ^ 1); };
  for (int i = 0; i < count; ++i, at.advance()) {
    auto const place = walk.place(block.cluster, i);
    int const column = place.set * Shape::kPitch, row = place.unit * Shape::kRows;
    uint32_t const stage = block.stages.w(at.stage), full = block.stages.full(at.stage);
    wait_until_read();
    mbarrier_arrive_expect(full, Shape::kStageBytes);
    tma_load_multicast(stage + block.rank * kBoxBytes, &args.codes, full, column, row + block.rank * Shape::kBoxRows,
                       0b11);
  }
  // A block's shared memory must outlive the arrivals of its peer, and the copies to it.
  for (int i = 0; i < Shape::kStages; ++i, at.advance()) wait_until_read();
}

/// Codes as `bring_codes` brings them.
template <class Shape>
class WideCodes {
 public:
  __device__ __forceinline__ explicit WideCodes(WideBlock<Shape> const& block) : block_(block) {}

  /// This thread's codes of the next unit.
  __device__ __forceinline__ void take(uint32_t (&words)[6]) const {
    mbarrier_wait(block_.stages.full(at_.stage), at_.parity);
    uint32_t const row =
        block_.stages.w(at_.stage) + static_cast<int>(threadIdx.x) * Shape::kPitch + block_.rank * Shape::kRowBytes;
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      uint32_t pair[2];
      load_shared(pair, row + 8 * i);
      words[2 * i] = pair[0], words[2 * i + 1] = pair[1];
    }
  }

  /// What `take` took has been used: its stage may be filled again, by all blocks that fill it.
  __device__ __forceinline__ void release() {
    __syncwarp();
    uint32_t const lane = threadIdx.x % 32;
    if (lane < Shape::kBlocks) mbarrier_arrive_at(block_.stages.empty(at_.stage), lane);
    at_.advance();
  }

 private:
  WideBlock<Shape> const& block_;
  typename Shape::Stages::Position at_;
};

/// The warps that look up.
template <class Shape>
class WideProduct {
  using T = typename Shape::T;

 public:
  __device__ __forceinline__ WideProduct(WideArgs<T> const& args, WideBlock<Shape> const& block)
      : args_(args.table),
        walk_(args.walk),
        block_(block),
        codes_(block),
        table_(args.table, block.table),
        select_(lane() % 4 == lane() / 8 ? 0x3c00u : 0u) {}

  __device__ __forceinline__ void run() {
    int const count = walk_.count(block_.cluster);
    wait_for_predecessor();
    release_successor();
    uint32_t x = load_x(walk_.place(block_.cluster, 0).set);
    codes_.take(words_);
    for (int first = 0; first < count;) {
      auto const now = walk_.place(block_.cluster, first);
      int const end = min(walk_.units, now.unit + count - first), slice = block_.slice(now.set);
      first += end - now.unit;
      float const unit = table_.fill(x);
      x = load_x(walk_.place(block_.cluster, min(first, count - 1)).set);
      float* const sums = args_.sums + int64_t{slice} * args_.n;
#pragma unroll 1
      for (int i = now.unit; i < end; ++i) {
        uint32_t products[kWideCodes];
        look_up(products);
        codes_.release();
        if (i + 1 < end || first < count) codes_.take(words_);
        float const sum = add(products) * unit;
        int const n = i * Shape::kRows + static_cast<int>(threadIdx.x);
        if (n < args_.n && slice < args_.slices) sums[n] = sum;
      }
      threads_sync<kTableThreads>(kWideBarrier);  // everyone has left the table
    }
  }

 private:
  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }

  // --- products ---

  /// This lane's two x of a set's slice: elements 2 t and 2 t + 1 of group g; zeros behind K.
  __device__ __forceinline__ uint32_t load_x(int set) const {
    int const column = block_.slice(set) * Shape::kColumns + lane() / 4 * 8 + lane() % 4 * 2;
    return column < args_.k ? *reinterpret_cast<uint32_t const*>(args_.x + column) : 0;
  }

  // --- look-ups ---

  /// Start looking up the products that this lane's codes name; each is the lower half of a word.
  __device__ __forceinline__ void look_up(uint32_t (&products)[kWideCodes]) const { look_up_from<0>(products); }

  /// Code i and those behind it.
  template <int i>
  __device__ __forceinline__ void look_up_from(uint32_t (&products)[kWideCodes]) const {
    if constexpr (i < kWideCodes) {
      constexpr int kBit = 12 * i, kAt = kBit / 32, kShift = kBit % 32 - 1;  // a code moves to bit 1
      uint32_t code;
      if constexpr (kShift < 0) {
        code = words_[kAt] << 1;
      } else if constexpr (kShift + 13 > 32) {
        code = __funnelshift_r(words_[kAt], words_[kAt + 1], kShift);
      } else {
        code = words_[kAt] >> kShift;
      }
      products[i] = load_half<wide_place(i / 2, i % 2, 0)>((code & kWideCodeMask) + block_.table);
      look_up_from<i + 1>(products);
    }
  }

  template <int kOffset>
  __device__ __forceinline__ static uint32_t load_half(uint32_t address) {
    uint32_t value;
    asm volatile("ld.shared.u16 %0, [%1 + %2];" : "=r"(value) : "r"(address), "n"(kOffset));
    return value;
  }

  /// The sum of this lane's products. Columns 2 t and 2 t + 1 of B are 1 where lane t's words of A meet them, so a
  /// product's row g has the sums of lane t of quad g where that lane has them itself, and rows g + 8 the same.
  __device__ __forceinline__ float add(uint32_t const (&products)[kWideCodes]) const {
    float sums[2][4] = {};
#pragma unroll
    for (int i = 0; i < kWideCodes; i += 4) {
      uint32_t const four[4] = {products[i], products[i + 1], products[i + 2], products[i + 3]};
      mma_f16(sums[i / 4 % 2], four, select_, select_);
    }
    return (sums[0][0] + sums[0][2]) + (sums[1][0] + sums[1][2]);
  }

  TableArgs<T> const& args_;
  WideWalk const& walk_;
  WideBlock<Shape> const& block_;
  WideCodes<Shape> codes_;
  WideTableMaker<Shape> table_;
  uint32_t words_[6];
  uint32_t const select_;  // B of `add`
};

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    linear_wide_sm90(__grid_constant__ WideArgs<typename Shape::T> const args) {
  extern __shared__ __align__(1024) uint8_t memory[];
  WideBlock<Shape> const block(shared_address(memory));
  int const warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);  // known to be the warp's
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&args.codes);
    block.stages.init(Shape::kBlocks * kTableWarps);
    mbarrier_init_fence();
  }
  cluster_sync();
  if (warp == kTableWarps) {
    if (threadIdx.x % 32 == 0) bring_codes<Shape>(args, block);
  } else {
    WideProduct<Shape>(args, block).run();
  }
}

}  // namespace graphopt::vq
