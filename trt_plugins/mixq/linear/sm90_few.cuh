// MixQ linear on Hopper for few tokens, where bringing W in is nearly all the work.
//
// Y^T = W X^T: the 64 rows of a wgmma are rows of W, and its short side, kTokens, the rows of X. A cluster owns 128 rows
// of W and its blocks split K (codes, then outliers) so that together they keep memory busy; each ends with an exact
// int32 sum and a float32 sum per element. The blocks then read each other's sums through distributed shared memory,
// each for its part of the columns of Y, and add them up in the order of their ranks: no atomics, one result.
#pragma once

#include <cstdint>

#include "mixq/linear/sm90_convert.cuh"
#include "mixq/linear/sm90_ring.cuh"

namespace graphopt::mixq {

/// Operands of the kernel; lives in constant memory, where the copy engine wants its tensor maps.
template <class T>
struct Sm90FewArgs {
  CUtensorMap xq;  // [M, K] int8
  CUtensorMap wq;  // [N, K] int8
  CUtensorMap xo;  // [M, C] T
  CUtensorMap wo;  // [N, C] T
  float const* sx;  // [M]
  float const* sw;  // [N], a multiple of 8 bytes
  T const* bias;    // [N], a multiple of 4 bytes, as y
  T* y;             // [M, N], N even
  int32_t m;
  int32_t n;
  int32_t x_rows;  // brought into a stage; the rest of a stage belongs to rows that are not stored
  StageOrder<T> order;
};

/// What one block of a cluster does.
struct Sm90FewShare {
  int row;     // first of X
  int column;  // first of Y, that is row of W
  int rank;
  int split;       // blocks of the cluster
  int first, last;  // tiles along K
};

template <class Traits, class T>
__device__ __forceinline__ Sm90FewShare few_share(Sm90FewArgs<T> const& args, int tokens) {
  int const split = static_cast<int>(cluster_size()), rank = static_cast<int>(cluster_rank());
  int const tiles = args.order.tiles();
  return {static_cast<int>(blockIdx.y) * tokens,
          static_cast<int>(blockIdx.x) / split * Traits::kRowsN,
          rank,
          split,
          tiles * rank / split,
          tiles * (rank + 1) / split};
}

/// One warpgroup that multiplies: 64 of the block's rows of W.
template <class T, int kTokens>
class Sm90FewConsumer {
 public:
  using Traits = Sm90FewTraits<T, kTokens>;
  using Product = Wgmma<kTokens>;
  using Stages = Ring<Traits::kStages, Traits::kXBytes, Traits::kWBytes>;

  __device__ __forceinline__ Sm90FewConsumer(Sm90FewArgs<T> const& args, Stages const& stages,
                                             Sm90FewShare const& share)
      : args_(args), stages_(stages), share_(share), pairs_(Traits::kRowsN / 2 / share.split),
        column_(2 * (share.rank * pairs_ + static_cast<int>(threadIdx.x) % pairs_)),
        token_(static_cast<int>(threadIdx.x) / pairs_) {}

  /// Multiply, leave the sums in shared memory and load what else the epilogue needs.
  __device__ __forceinline__ void multiply_share() {
    load_constants();
    int const codes = max(0, min(share_.last, args_.order.code_tiles) - share_.first);
    int const outliers = share_.last - share_.first - codes;
    uint32_t inner[1][Traits::kSums] = {}, outer[1][Traits::kSums] = {};
    RingPosition<Traits::kStages> at;
    if (codes > 0) {
      multiply(inner, stages_, at, codes, *this, [](auto& d, uint64_t w, uint64_t x, bool) {
        Product::s8(d, w, x, /*accumulate=*/true);
      });
    }
    if (outliers > 0) {
      multiply(outer, stages_, at, outliers, *this, [](auto& d, uint64_t w, uint64_t x, bool) {
        Product::outliers(d, w, x, T{});
      });
    }
    warpgroup_sync<Traits::kConsumers>(1);  // the other one may still read the ring, where the sums go
    write_part(inner[0], stages_.base);
    write_part(outer[0], stages_.base + Traits::kPartBytes);
    load_sx();
  }

  /// Add up the sums of all blocks for this thread's columns, two at a time, and store them.
  __device__ __forceinline__ void store() const {
    int const n = share_.column + column_;
    if (n >= args_.n) return;
#pragma unroll
    for (int i = 0; i < kMaxTokens; ++i) {
      int const token = token_ + i * stride();
      int const row = share_.row + token;
      if (token >= kTokens || row >= args_.m) break;
      int32_t inner[2] = {};
      float outer[2] = {};
#pragma unroll 4
      for (int rank = 0; rank < share_.split; ++rank) {
        uint32_t const at = cluster_address(stages_.base + (token * Traits::kPitch + column_) * 4, rank);
        uint2 const codes = cluster_load(at), outliers = cluster_load(at + Traits::kPartBytes);
        inner[0] += static_cast<int32_t>(codes.x);
        inner[1] += static_cast<int32_t>(codes.y);
        outer[0] += __uint_as_float(outliers.x);
        outer[1] += __uint_as_float(outliers.y);
      }
      float const low = __int2float_rn(inner[0]) * (sx_[i] * sw_.x) + outer[0] + bias_.x;
      float const high = __int2float_rn(inner[1]) * (sx_[i] * sw_.y) + outer[1] + bias_.y;
      *reinterpret_cast<uint32_t*>(args_.y + int64_t{row} * args_.n + n) = pack(low, high, T{});
    }
  }

  __device__ __forceinline__ uint32_t a(int stage) const {
    return stages_.w(stage) + static_cast<int>(threadIdx.x) / kWarpgroup * kWgmmaRows * kSwizzleBytes;
  }

  __device__ __forceinline__ uint32_t b(int stage) const { return stages_.x(stage); }

  __device__ __forceinline__ void release(int stage) const {
    if (threadIdx.x % 32 == 0) mbarrier_arrive(stages_.empty(stage));
  }

 private:
  static constexpr int kThreads = Traits::kConsumers * kWarpgroup;
  static constexpr int kMaxTokens = kTokens * (Traits::kRowsN / 2) / kThreads;  // of a thread

  /// From one of a thread's tokens to the next.
  __device__ __forceinline__ int stride() const { return kThreads / pairs_; }

  /// These come from memory, like W: the products hide their latency.
  __device__ __forceinline__ void load_constants() {
    int const n = share_.column + column_;
    if (n >= args_.n) return;
    sw_ = load_early(reinterpret_cast<float2 const*>(args_.sw + n));
    bias_ = unpack(load_early(reinterpret_cast<uint32_t const*>(args_.bias + n)), T{});
  }

  /// These were just written and come from L2 while the cluster gathers; before that, registers are needed for sums.
  __device__ __forceinline__ void load_sx() {
#pragma unroll
    for (int i = 0; i < kMaxTokens; ++i) {
      int const token = token_ + i * stride();
      if (token < kTokens && share_.row + token < args_.m) sx_[i] = load_early(args_.sx + share_.row + token);
    }
  }

  /// Store sums, whose rows are those of W, as [kTokens, kPitch].
  __device__ __forceinline__ void write_part(uint32_t const (&sum)[Traits::kSums], uint32_t part) const {
    int const thread = static_cast<int>(threadIdx.x);
    int const column = thread / 32 * 16 + thread % 32 / 4;
    int const token = 2 * (thread % 4);
#pragma unroll
    for (int i = 0; i < Traits::kSums; ++i) {
      int const at = (token + i / 4 * 8 + i % 2) * Traits::kPitch + column + i % 4 / 2 * 8;
      asm volatile("st.shared.u32 [%0], %1;" ::"r"(part + at * 4), "r"(sum[i]) : "memory");
    }
  }

  Sm90FewArgs<T> const& args_;
  Stages const stages_;
  Sm90FewShare const share_;
  int const pairs_;   // of columns that this block stores
  int const column_;  // of the tile: the first of this thread's pair
  int const token_;   // this thread's first
  float2 sw_ = {};
  float2 bias_ = {};
  float sx_[kMaxTokens] = {};
};

/// One thread: fill the ring with the block's share.
template <class T, class Stages>
__device__ __forceinline__ void produce_few(Sm90FewArgs<T> const& args, Stages const& stages, uint32_t bytes,
                                            Sm90FewShare const& share) {
  typename Stages::Position at;
  for (int i = share.first; i < share.last; ++i, at.advance()) {
    bool const codes = args.order.is_codes(i);
    int const k = args.order.column(i);
    uint32_t const barrier = stages.full(at.stage);
    stages.acquire(at, bytes);
    tma_load(stages.w(at.stage), codes ? &args.wq : &args.wo, barrier, k, share.column);
    tma_load(stages.x(at.stage), codes ? &args.xq : &args.xo, barrier, k, share.row);
  }
}

template <class T, int kTokens>
__global__ void __launch_bounds__(Sm90FewTraits<T, kTokens>::kThreads, Sm90FewTraits<T, kTokens>::kBlocksPerSm)
    linear_sm90_few(__grid_constant__ Sm90FewArgs<T> const args) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Traits = Sm90FewTraits<T, kTokens>;
  using Consumer = Sm90FewConsumer<T, kTokens>;
  extern __shared__ __align__(1024) uint8_t memory[];
  uint32_t const base = shared_address(memory);
  typename Consumer::Stages const stages{base, base + Traits::kBarrierOffset};
  if (threadIdx.x == 0) {
    for (CUtensorMap const* map : {&args.xq, &args.wq, &args.xo, &args.wo}) prefetch_tensor_map(map);
    stages.init(Traits::kReaderWarps);
    mbarrier_init_fence();
  }
  __syncthreads();
  allow_next_grid();
  await_previous_grid();

  Sm90FewShare const share = few_share<Traits>(args, kTokens);
  Consumer consumer(args, stages, share);
  bool const consumes = threadIdx.x / 32 < Traits::kReaderWarps;
  if (consumes) {
    consumer.multiply_share();
  } else if (threadIdx.x % 32 == 0) {
    produce_few(args, stages, args.x_rows * kStageRowBytes + Traits::kWBytes, share);
  }
  __syncwarp();
  if (share.split == 1) {
    __syncthreads();
  } else {
    cluster_sync();
  }
  if (consumes) consumer.store();
  __syncwarp();
  if (share.split > 1) cluster_depart();  // a block's sums must outlive the reads of its peers
#else
  __trap();  // not launched: compiled along with the library's other architectures
#endif
}

}  // namespace graphopt::mixq
