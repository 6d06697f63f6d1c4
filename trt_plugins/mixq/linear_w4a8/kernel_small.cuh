// Kernel for few tokens, where reading W is all the work: it goes from global memory straight into mma registers.
//
// Yᵀ = W Xᵀ: the 16 rows of an mma are rows of W and its 8 columns tokens. A dot product does not care about the
// order of K: lane (g = lane / 4, t = lane % 4) reads 16 consecutive bytes of rows g and g + 8 at byte 64 s + 16 t, the
// codes of columns 128 s + 32 t and on, and each of the four words feeds one mma: the low nibbles are the first half of
// its K, the high ones, 16 columns on, the second.
//
// Codes of X are int8, or packed 4-bit ones as those of W are.
//
// Warps split K; one more brings the outliers, the scales and the bias, so that their way from memory is hidden behind
// that of W. The sums meet in shared memory in a fixed order.
#pragma once

#include "mixq/linear_w4a8/codes.cuh"
#include "mixq/linear_w4a8/policy.h"

namespace graphopt::mixq {

/// kXBits: of a code of X, 8 or 4.
template <class T, class Shape, int kXBits>
class SmallW4A8 {
  static constexpr int kRows = 16 * Shape::kRowTiles;  // of W
  static constexpr int kTokens = 8 * Shape::kTokenTiles;
  static constexpr int kRowStep = 64;  // of a row of wq4 in a warp's step
  static constexpr int kWarps = Shape::kWarps;
  static constexpr int kXVectors = kXBits / 4;  // of 16 bytes, for a vector of W

 public:
  static constexpr int kThreads = 32 * (kWarps + 1);

  struct Shared {
    int32_t inner[kWarps][kTokens][kRows];  // parts of the integer product
    float scale[kTokens][kRows];            // sx sw
    float rest[kTokens][kRows];             // outlier product + bias + residual
  };

  __device__ __forceinline__ SmallW4A8(LinearW4A8Args<T> const& args, Shared& shared)
      : args_(args),
        shared_(shared),
        n0_(int64_t{blockIdx.x} * kRows),
        m0_(int64_t{blockIdx.y} * kTokens),
        warp_(static_cast<int>(threadIdx.x) / 32),
        g_(static_cast<int>(threadIdx.x) % 32 / 4),
        t_(static_cast<int>(threadIdx.x) % 4) {}

  /// Bring the first bytes of the block's rows of W into L2.
  __device__ __forceinline__ void prefetch() const {
    int64_t const n = n0_ + static_cast<int>(threadIdx.x);
    if (threadIdx.x >= kRows || n >= args_.n || args_.prefetched == 0) return;
    prefetch_bytes(args_.wq4 + n * args_.row_bytes, static_cast<uint32_t>(args_.prefetched));
  }

  __device__ __forceinline__ void run() {
    if (warp_ < kWarps) {
      multiply_codes();
    } else {
      multiply_outliers();
    }
    __syncthreads();
    write();
  }

 private:
  /// What a lane holds of 128 columns: codes and integer scales of its rows of W, and the 32 columns of its tokens.
  struct Step {
    Vec<int8_t> w[2 * Shape::kRowTiles];
    uint32_t scale[2 * Shape::kRowTiles];
    Vec<int8_t> x[Shape::kTokenTiles][kXVectors];
  };

  // Rows outside W and X are read as the last one: their sums are not stored.
  __device__ __forceinline__ int64_t row(int r) const { return min(n0_ + g_ + 8 * r, args_.n - 1); }
  __device__ __forceinline__ int64_t token(int j) const { return min(m0_ + g_ + 8 * j, args_.m - 1); }

  /// Call visit(token, row, tile, j, r): the place in the block's part of Y of c[r] of mma (tile, j).
  template <class Visit>
  __device__ __forceinline__ void for_each_sum(Visit&& visit) const {
#pragma unroll
    for (int i = 0; i < Shape::kRowTiles; ++i) {
#pragma unroll
      for (int j = 0; j < Shape::kTokenTiles; ++j) {
#pragma unroll
        for (int r = 0; r < 4; ++r) visit(j * 8 + t_ * 2 + r % 2, i * 16 + g_ + r / 2 * 8, i, j, r);
      }
    }
  }

  /// Where a lane reads its next steps.
  struct Cursor {
    int8_t const* w[2 * Shape::kRowTiles];
    uint8_t const* scale[2 * Shape::kRowTiles];  // of group 0
    int8_t const* x[Shape::kTokenTiles];
    int byte;  // of a row of wq4

    __device__ __forceinline__ void advance(int bytes) {
#pragma unroll
      for (auto& w_row : w) w_row += bytes;
#pragma unroll
      for (auto& x_row : x) x_row += kXVectors * bytes;
      byte += bytes;
    }
  };

  /// This warp's part of xq wc^T: every kWarps-th step, kDepth of them on their way.
  __device__ __forceinline__ void multiply_codes() {
    constexpr int kStride = kWarps * kRowStep;
    int32_t sums[Shape::kRowTiles][Shape::kTokenTiles][4] = {};
    Step steps[Shape::kDepth];
    Cursor at = start();
#pragma unroll
    for (int s = 0; s < Shape::kDepth; ++s) load(steps[s], at, s * kStride);
#pragma unroll 1
    for (int byte = warp_ * kRowStep; byte < args_.row_bytes; byte += Shape::kDepth * kStride) {
      at.advance(Shape::kDepth * kStride);
#pragma unroll
      for (int s = 0; s < Shape::kDepth; ++s) {
        multiply(sums, steps[s]);
        load(steps[s], at, s * kStride);
      }
    }
    for_each_sum([&](int token, int row, int i, int j, int r) { shared_.inner[warp_][token][row] = sums[i][j][r]; });
  }

  __device__ __forceinline__ Cursor start() const {
    Cursor at;
    at.byte = warp_ * kRowStep + t_ * 16;
#pragma unroll
    for (int r = 0; r < 2 * Shape::kRowTiles; ++r) {
      at.w[r] = args_.wq4 + row(r) * args_.row_bytes + at.byte;
      at.scale[r] = args_.sg + row(r);
    }
#pragma unroll
    for (int j = 0; j < Shape::kTokenTiles; ++j) {
      at.x[j] = args_.xq + token(j) * (kXBits == 4 ? args_.row_bytes : args_.k) + kXVectors * at.byte;
    }
    return at;
  }

  /// Start loading the step that is `ahead` bytes of wq4 after `at`; past the end, zeros.
  __device__ __forceinline__ void load(Step& step, Cursor const& at, int ahead) const {
    int const byte = at.byte + ahead, column = 2 * byte;
    step = {};
    if (byte < args_.row_bytes) {
      int64_t const group = int64_t{column >> args_.group_shift} * args_.n;
#pragma unroll
      for (int r = 0; r < 2 * Shape::kRowTiles; ++r) {
        step.w[r] = load_streaming(at.w[r] + ahead);
        step.scale[r] = load_byte(at.scale[r] + group);
      }
#pragma unroll
      for (int j = 0; j < Shape::kTokenTiles; ++j) {
        step.x[j][0] = load_cached(at.x[j] + kXVectors * ahead);
        if constexpr (kXBits == 8) {
          if (column + 16 < args_.k) step.x[j][1] = load_cached(at.x[j] + kXVectors * ahead + 16);
        }
      }
    }
  }

  __device__ __forceinline__ void multiply(int32_t (&sums)[Shape::kRowTiles][Shape::kTokenTiles][4],
                                           Step const& step) const {
#pragma unroll
    for (int i = 0; i < Shape::kRowTiles; ++i) {
      GroupScale const upper(step.scale[2 * i]), lower(step.scale[2 * i + 1]);
#pragma unroll
      for (int word = 0; word < 4; ++word) {
        uint32_t const first = step.w[2 * i].word[word], second = step.w[2 * i + 1].word[word];
        uint32_t const a[4] = {upper.low(first), lower.low(second), upper.high(first), lower.high(second)};
#pragma unroll
        for (int j = 0; j < Shape::kTokenTiles; ++j) {
          if constexpr (kXBits == 8) {
            mma_s8(sums[i][j], a, step.x[j][0].word[word], step.x[j][1].word[word]);
          } else {
            GroupScale const one(1);
            uint32_t const codes = step.x[j][0].word[word];
            mma_s8(sums[i][j], a, one.low(codes), one.high(codes));
          }
        }
      }
    }
  }

  /// xo wo^T + bias + residual, and sx sw, all by one warp.
  __device__ __forceinline__ void multiply_outliers() {
    constexpr int kUnroll = Shape::kRowTiles * Shape::kTokenTiles <= 4 ? 2 : 1;
    int const bytes = args_.capacity * static_cast<int>(sizeof(T));
    auto const* x = reinterpret_cast<int8_t const*>(args_.xo);
    auto const* w = reinterpret_cast<int8_t const*>(args_.wo);
    float sums[Shape::kRowTiles][Shape::kTokenTiles][4];
    for_each_sum([&](int token, int row, int i, int j, int r) {
      int64_t const m = min(m0_ + token, args_.m - 1), n = min(n0_ + row, args_.n - 1);
      sums[i][j][r] = to_float(__ldg(args_.bias + n));
      if (args_.residual != nullptr) sums[i][j][r] += to_float(__ldg(args_.residual + m * args_.n + n));
      shared_.scale[token][row] = __ldg(args_.sx + m) * __ldg(args_.sw + n);
    });
#pragma unroll kUnroll
    for (int start = 0; start < bytes; start += 64) {
      int const byte = start + t_ * 16;
      Vec<int8_t> wv[2 * Shape::kRowTiles], xv[Shape::kTokenTiles];
      if (byte < bytes) {
#pragma unroll
        for (int r = 0; r < 2 * Shape::kRowTiles; ++r) wv[r] = load_streaming(w + row(r) * bytes + byte);
#pragma unroll
        for (int j = 0; j < Shape::kTokenTiles; ++j) xv[j] = load_cached(x + token(j) * bytes + byte);
      }
#pragma unroll
      for (int i = 0; i < Shape::kRowTiles; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          Vec<int8_t> const &upper = wv[2 * i], &lower = wv[2 * i + 1];
          uint32_t const a[4] = {upper.word[2 * half], lower.word[2 * half], upper.word[2 * half + 1],
                                 lower.word[2 * half + 1]};
#pragma unroll
          for (int j = 0; j < Shape::kTokenTiles; ++j) {
            mma_outliers<T>(sums[i][j], a, xv[j].word[2 * half], xv[j].word[2 * half + 1]);
          }
        }
      }
    }
    for_each_sum([&](int token, int row, int i, int j, int r) { shared_.rest[token][row] = sums[i][j][r]; });
  }

  /// Sum the warps' parts in order, scale, add, round, store.
  __device__ __forceinline__ void write() const {
    for (int item = static_cast<int>(threadIdx.x); item < kTokens * kRows; item += kThreads) {
      int const token = item / kRows, row = item % kRows;
      int64_t const m = m0_ + token, n = n0_ + row;
      if (m >= args_.m || n >= args_.n) continue;
      int32_t inner = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) inner += shared_.inner[w][token][row];
      args_.y[m * args_.n + n] =
          from_float<T>(static_cast<float>(inner) * shared_.scale[token][row] + shared_.rest[token][row]);
    }
  }

  LinearW4A8Args<T> const& args_;
  Shared& shared_;
  int64_t n0_, m0_;
  int warp_, g_, t_;
};

template <class T, class Shape, int kXBits>
__global__ void __launch_bounds__(SmallW4A8<T, Shape, kXBits>::kThreads)
    linear_w4a8_small(LinearW4A8Args<T> const args) {
  using Kernel = SmallW4A8<T, Shape, kXBits>;
  __shared__ typename Kernel::Shared shared;
  Kernel kernel(args, shared);
  kernel.prefetch();
  wait_for_predecessor();
  release_successor();
  kernel.run();
}

}  // namespace graphopt::mixq
