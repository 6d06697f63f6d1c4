// Kernel for M <= 16, where reading W is all the work: it goes from global memory straight into mma registers.
//
// A dot product does not care about the order of K, so an mma's K positions are assigned to suit the loads: lane
// (g = lane / 4, t = lane % 4) reads 16 consecutive bytes of row g at byte 64 s + 16 t, and its four words feed two
// mma. X is read in the same order. The warps of a block share its rows of W and split K; their partial sums meet in
// shared memory in a fixed order.
#pragma once

#include "common/ptx.cuh"
#include "mixq/linear/kernel_common.cuh"
#include "mixq/linear/policy.h"

namespace graphopt::mixq {

constexpr int kSmallWarps = 8;
constexpr int kSmallUnroll = 2;  // steps of 64 bytes whose loads are issued together: 128 bytes of a row per warp
constexpr int kSmallStep = 64;   // bytes along K
constexpr int kSmallColumns = 8;  // rows of W of a block: more per read of X leave too few blocks to fill the device

/// kBothHalves: M > 8, so that the mma's rows 8..15 are in use.
template <class T, bool kBothHalves>
class SmallKernel {
  static constexpr int kRows = kBothHalves ? 16 : 8;

 public:
  /// Partial sums of the warps: the int8 product and the outlier product.
  struct Shared {
    int32_t inner[kSmallWarps][kRows][kSmallColumns];
    float outliers[kSmallWarps][kRows][kSmallColumns];
  };

  __device__ __forceinline__ SmallKernel(LinearArgs<T> const& args, Shared& shared)
      : args_(args),
        shared_(shared),
        n0_(int64_t{blockIdx.x} * kSmallColumns),
        warp_(static_cast<int>(threadIdx.x) / 32),
        g_(static_cast<int>(threadIdx.x) % 32 / 4),
        t_(static_cast<int>(threadIdx.x) % 4) {}

  /// Bring the first bytes of the block's rows of W into L2.
  __device__ __forceinline__ void prefetch() const {
    int64_t const n = n0_ + static_cast<int>(threadIdx.x);
    if (threadIdx.x >= kSmallColumns || n >= args_.n || args_.prefetched == 0) return;
    prefetch_bytes(args_.wq + n * args_.k, static_cast<uint32_t>(args_.prefetched));
  }

  __device__ __forceinline__ void run() {
    int32_t inner[4] = {};
    float outliers[4] = {};
    accumulate<kSmallUnroll>(args_.xq, args_.wq, args_.k, [&](uint32_t const(&a)[4], uint32_t b0, uint32_t b1) {
      mma_s8(inner, a, b0, b1);
    });
    accumulate<1>(
        reinterpret_cast<int8_t const*>(args_.xo), reinterpret_cast<int8_t const*>(args_.wo),
        args_.capacity * static_cast<int>(sizeof(T)),
        [&](uint32_t const(&a)[4], uint32_t b0, uint32_t b1) { mma_outliers<T>(outliers, a, b0, b1); });
#pragma unroll
    for (int r = 0; r < (kBothHalves ? 4 : 2); ++r) {
      int const row = g_ + r / 2 * 8, column = t_ * 2 + r % 2;
      shared_.inner[warp_][row][column] = inner[r];
      shared_.outliers[warp_][row][column] = outliers[r];
    }
    __syncthreads();
    write();
  }

 private:
  /// Multiply rows of x [M, bytes] and w [N, bytes]; this warp takes every kSmallWarps-th stretch of kUnroll steps.
  template <int kUnroll, class Mma>
  __device__ __forceinline__ void accumulate(int8_t const* x, int8_t const* w, int bytes, Mma&& mma) const {
    for (int start = warp_ * kUnroll * kSmallStep; start < bytes; start += kSmallWarps * kUnroll * kSmallStep) {
      Vec<int8_t> wv[kUnroll], xv[kUnroll][2];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        int const byte = start + u * kSmallStep + t_ * 16;
        bool const inside = byte < bytes;
        int64_t const n = n0_ + g_;
        if (inside && n < args_.n) wv[u] = load_streaming(w + n * bytes + byte);
        if (inside && g_ < args_.m) xv[u][0] = load_cached(x + int64_t{g_} * bytes + byte);
        if (kBothHalves && inside && g_ + 8 < args_.m) xv[u][1] = load_cached(x + int64_t{g_ + 8} * bytes + byte);
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          uint32_t const a[4] = {xv[u][0].word[2 * half], xv[u][1].word[2 * half], xv[u][0].word[2 * half + 1],
                                 xv[u][1].word[2 * half + 1]};
          mma(a, wv[u].word[2 * half], wv[u].word[2 * half + 1]);
        }
      }
    }
  }

  /// Sum the warps' parts in order, scale, add, round, store.
  __device__ __forceinline__ void write() const {
    for (int item = static_cast<int>(threadIdx.x); item < kRows * kSmallColumns; item += kSmallWarps * 32) {
      int const row = item / kSmallColumns, column = item % kSmallColumns;
      int64_t const n = n0_ + column;
      if (row >= args_.m || n >= args_.n) continue;
      int32_t inner = 0;
      float outliers = 0.0f;
#pragma unroll
      for (int w = 0; w < kSmallWarps; ++w) {
        inner += shared_.inner[w][row][column];
        outliers += shared_.outliers[w][row][column];
      }
      float const scale = args_.sx[row] * args_.sw[n];
      args_.y[row * args_.n + n] =
          from_float<T>(static_cast<float>(inner) * scale + outliers + to_float(args_.bias[n]));
    }
  }

  LinearArgs<T> const& args_;
  Shared& shared_;
  int64_t n0_;
  int warp_, g_, t_;
};

template <class T, bool kBothHalves>
__global__ void __launch_bounds__(32 * kSmallWarps) linear_small(LinearArgs<T> const args) {
  using Kernel = SmallKernel<T, kBothHalves>;
  __shared__ typename Kernel::Shared shared;
  Kernel kernel(args, shared);
  kernel.prefetch();
  wait_for_predecessor();
  release_successor();
  kernel.run();
}

}  // namespace graphopt::mixq
