// Kernel for M <= 16, where reading W is all the work: it goes from global memory straight into mma registers.
//
// A dot product does not care about the order of K, so an mma's K positions are assigned to suit the loads: lane
// (g = lane / 4, t = lane % 4) reads 16 consecutive bytes of row g at byte 64 s + 16 t, and its four words feed two
// mma. X is read in the same order. The warps of a block share its rows of W and split K; one more brings the outliers,
// the scales and the bias, so that their way from memory is hidden behind that of W. The sums meet in shared memory in a
// fixed order. What is read first of W is on its way before the kernel before ends.
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
  static constexpr int kSums = kBothHalves ? 4 : 2;  // of a lane

 public:
  static constexpr int kThreads = 32 * (kSmallWarps + 1);

  struct Shared {
    int32_t inner[kSmallWarps][kRows][kSmallColumns];  // parts of the integer product
    float scale[kRows][kSmallColumns];                 // sx sw
    float rest[kRows][kSmallColumns];                  // outlier product + bias + residual
  };

  __device__ __forceinline__ SmallKernel(LinearArgs<T> const& args, Shared& shared)
      : args_(args),
        shared_(shared),
        n0_(int64_t{blockIdx.x} * kSmallColumns),
        warp_(static_cast<int>(threadIdx.x) / 32),
        g_(static_cast<int>(threadIdx.x) % 32 / 4),
        t_(static_cast<int>(threadIdx.x) % 4) {}

  /// Start to read codes of W, and bring those that follow into L2. Nothing else: the kernel before may run yet.
  __device__ __forceinline__ void start() {
    if (warp_ < kSmallWarps) load(codes_, args_.wq, args_.k, warp_ * kStretch);
    int64_t const n = n0_ + static_cast<int>(threadIdx.x);
    constexpr int kFirst = kSmallWarps * kStretch;
    if (threadIdx.x >= kSmallColumns || n >= args_.n || args_.prefetched <= kFirst) return;
    prefetch_bytes(args_.wq + n * args_.k + kFirst, static_cast<uint32_t>(args_.prefetched - kFirst));
  }

  __device__ __forceinline__ void run() {
    if (warp_ < kSmallWarps) {
      multiply_codes();
    } else {
      multiply_outliers();
    }
    __syncthreads();
    write();
  }

 private:
  static constexpr int kStretch = kSmallUnroll * kSmallStep;  // bytes of a row that a warp reads at a time

  /// Vectors of rows g and g + 8 of X.
  using Rows = Vec<int8_t>[2];

  /// Start to load a lane's part of row g of w [N, bytes], kCount steps from byte `start`; zeros outside.
  template <int kCount>
  __device__ __forceinline__ void load(Vec<int8_t> (&v)[kCount], int8_t const* w, int bytes, int start) const {
    int64_t const n = n0_ + g_;
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
      int const byte = start + u * kSmallStep + t_ * 16;
      v[u] = {};
      if (byte < bytes && n < args_.n) v[u] = load_streaming(w + n * bytes + byte);
    }
  }

  /// The same of x [M, bytes].
  template <int kCount>
  __device__ __forceinline__ void load(Rows (&v)[kCount], int8_t const* x, int bytes, int start) const {
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
      int const byte = start + u * kSmallStep + t_ * 16;
      v[u][0] = v[u][1] = {};
      if (byte < bytes && g_ < args_.m) v[u][0] = load_cached(x + int64_t{g_} * bytes + byte);
      if (kBothHalves && byte < bytes && g_ + 8 < args_.m) v[u][1] = load_cached(x + int64_t{g_ + 8} * bytes + byte);
    }
  }

  /// Call mma(a, b0, b1) for both halves of every step.
  template <int kCount, class Mma>
  __device__ __forceinline__ static void multiply(Rows const (&x)[kCount], Vec<int8_t> const (&w)[kCount], Mma&& mma) {
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t const a[4] = {x[u][0].word[2 * half], x[u][1].word[2 * half], x[u][0].word[2 * half + 1],
                               x[u][1].word[2 * half + 1]};
        mma(a, w[u].word[2 * half], w[u].word[2 * half + 1]);
      }
    }
  }

  /// Place in the block's part of Y of c[r] of the mma.
  __device__ __forceinline__ int row(int r) const { return g_ + r / 2 * 8; }
  __device__ __forceinline__ int column(int r) const { return t_ * 2 + r % 2; }

  /// This warp's part of xq wq^T: every kSmallWarps-th stretch, the first of which is in codes_.
  __device__ __forceinline__ void multiply_codes() {
    int32_t sums[4] = {};
#pragma unroll 1
    for (int start = warp_ * kStretch; start < args_.k; start += kSmallWarps * kStretch) {
      Rows x[kSmallUnroll];
      load(x, args_.xq, args_.k, start);
      multiply(x, codes_, [&](uint32_t const(&a)[4], uint32_t b0, uint32_t b1) { mma_s8(sums, a, b0, b1); });
      load(codes_, args_.wq, args_.k, start + kSmallWarps * kStretch);
    }
#pragma unroll
    for (int r = 0; r < kSums; ++r) shared_.inner[warp_][row(r)][column(r)] = sums[r];
  }

  /// xo wo^T + bias + residual, and sx sw, all by one warp.
  __device__ __forceinline__ void multiply_outliers() {
    auto const* xo = reinterpret_cast<int8_t const*>(args_.xo);
    auto const* wo = reinterpret_cast<int8_t const*>(args_.wo);
    int const bytes = args_.capacity * static_cast<int>(sizeof(T));
    float sums[4] = {};
#pragma unroll
    for (int r = 0; r < kSums; ++r) {
      int64_t const m = min(int64_t{row(r)}, args_.m - 1), n = min(n0_ + column(r), args_.n - 1);
      sums[r] = to_float(args_.bias[n]);
      if (args_.residual != nullptr) sums[r] += to_float(args_.residual[m * args_.n + n]);
      shared_.scale[row(r)][column(r)] = args_.sx[m] * args_.sw[n];
    }
#pragma unroll 1
    for (int start = 0; start < bytes; start += kSmallStep) {
      Rows x[1];
      Vec<int8_t> w[1];
      load(w, wo, bytes, start);
      load(x, xo, bytes, start);
      multiply(x, w, [&](uint32_t const(&a)[4], uint32_t b0, uint32_t b1) { mma_outliers<T>(sums, a, b0, b1); });
    }
#pragma unroll
    for (int r = 0; r < kSums; ++r) shared_.rest[row(r)][column(r)] = sums[r];
  }

  /// Sum the warps' parts in order, scale, add, round, store.
  __device__ __forceinline__ void write() const {
    int const row = static_cast<int>(threadIdx.x) / kSmallColumns, column = static_cast<int>(threadIdx.x) % kSmallColumns;
    int64_t const n = n0_ + column;
    if (row >= kRows || row >= args_.m || n >= args_.n) return;
    int32_t inner = 0;
#pragma unroll
    for (int w = 0; w < kSmallWarps; ++w) inner += shared_.inner[w][row][column];
    args_.y[row * args_.n + n] =
        from_float<T>(static_cast<float>(inner) * shared_.scale[row][column] + shared_.rest[row][column]);
  }

  LinearArgs<T> const& args_;
  Shared& shared_;
  int64_t n0_;
  int warp_, g_, t_;
  Vec<int8_t> codes_[kSmallUnroll];  // of W, next to be multiplied
};

template <class T, bool kBothHalves>
__global__ void __launch_bounds__(SmallKernel<T, kBothHalves>::kThreads, sizeof(T) == 4 ? 3 : 4)
    linear_small(LinearArgs<T> const args) {
  using Kernel = SmallKernel<T, kBothHalves>;
  __shared__ typename Kernel::Shared shared;
  Kernel kernel(args, shared);
  kernel.start();
  wait_for_predecessor();
  release_successor();
  kernel.run();
}

}  // namespace graphopt::mixq
