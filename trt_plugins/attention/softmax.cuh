// The softmax of many query rows that see their scores tile by tile (Milakov and Gimelshein, 2018), for products on tensor
// cores. Scores and outputs lie in registers as mma and wgmma leave them: with lane l, [n][2 h + e] is row l / 4 + 8 h,
// column 8 n + 2 (l % 4) + e. wgmma's are words that hold a float.
#pragma once

#include <cmath>
#include <cstdint>

#include "attention/merge.cuh"
#include "attention/mma.cuh"

namespace graphopt::attention {

__device__ __forceinline__ float value_of(float x) { return x; }
__device__ __forceinline__ float value_of(uint32_t x) { return __uint_as_float(x); }
__device__ __forceinline__ void set_value(float& x, float value) { x = value; }
__device__ __forceinline__ void set_value(uint32_t& x, float value) { x = __float_as_uint(value); }

/// -infinity for tokens that a query row does not see.
///   seen: tokens from the tile's first one on that each of the lane's two rows sees.
template <int kBlocks, class Word>
__device__ __forceinline__ void mask_scores(Word (&s)[kBlocks][4], int32_t const (&seen)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int32_t const left = seen[half] - static_cast<int32_t>(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int n = 0; n < kBlocks; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (n * 8 + e >= left) set_value(s[n][half * 2 + e], -INFINITY);
      }
    }
  }
}

/// Multiply the lane's two rows.
template <int kBlocks, class Word>
__device__ __forceinline__ void scale_rows(Word (&o)[kBlocks][4], float const (&scale)[2]) {
#pragma unroll
  for (int n = 0; n < kBlocks; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) set_value(o[n][i], value_of(o[n][i]) * scale[i / 2]);
  }
}

/// Weights as the A operand of a product with the values: step t of 16 tokens takes p[t].
template <class T, int kBlocks, class Word>
__device__ __forceinline__ void round_weights(Word const (&s)[kBlocks][4], uint32_t (&p)[kBlocks / 2][4]) {
#pragma unroll
  for (int n = 0; n < kBlocks; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      p[n / 2][n % 2 * 2 + half] = round_pair<T>(value_of(s[n][half * 2]), value_of(s[n][half * 2 + 1]));
    }
  }
}

/// Weights may grow to 2^kSlack before outputs are rescaled: any T holds that as precisely as 1.
constexpr float kSlack = 8.0f;

/// Take the maxima of all lanes' scores as origins, too, where query rows are columns of products: with lane l,
/// [n][2 h + e] is row 2 (l % 4) + e. Called by whole warps.
///   high: the maxima of the lane's own scores; undefined afterwards.
///   max, sum, o: of the lane's two rows.
template <int kBlocks>
__device__ __forceinline__ void raise_origins(float (&high)[2], float (&max)[2], float (&sum)[2],
                                              float (&o)[kBlocks][4]) {
  float scale[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2) {
      high[e] = fmaxf(high[e], __shfl_xor_sync(0xffffffffu, high[e], offset));
    }
    high[e] = fmaxf(high[e], max[e]);
    scale[e] = exp2_approx(max[e] - usable_max(high[e]));
    max[e] = high[e];
    sum[e] *= scale[e];
  }
#pragma unroll
  for (int n = 0; n < kBlocks; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) o[n][i] *= scale[i % 2];
  }
}

/// Origin and sum of the weights of a lane's two rows; the sum is that of the lane's own columns.
class OnlineSoftmax {
 public:
  /// Scores become weights. The scale is positive, so that the largest product gives the largest score. Called by whole
  /// warps. Returns whether, for the whole warp, earlier outputs are to be multiplied by `rescale`.
  template <int kBlocks, class Word>
  __device__ __forceinline__ bool weigh(Word (&s)[kBlocks][4], float scale_log2, float (&rescale)[2]) {
    float grown[2];
    bool grows = false;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float m = -INFINITY;
#pragma unroll
      for (int n = 0; n < kBlocks; ++n) m = fmaxf(m, fmaxf(value_of(s[n][half * 2]), value_of(s[n][half * 2 + 1])));
      m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
      m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
      grown[half] = fmaxf(max_[half], m * scale_log2);
      grows |= grown[half] > max_[half] + kSlack;
    }
    grows = __any_sync(0xffffffffu, grows);
    if (grows) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        rescale[half] = exp2_approx(max_[half] - usable_max(grown[half]));
        max_[half] = grown[half];
        sum_[half] *= rescale[half];
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float const origin = usable_max(max_[half]);
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < kBlocks; ++n) {
        float const first = exp2_approx(value_of(s[n][half * 2]) * scale_log2 - origin);
        float const second = exp2_approx(value_of(s[n][half * 2 + 1]) * scale_log2 - origin);
        sum += first + second;
        set_value(s[n][half * 2], first);
        set_value(s[n][half * 2 + 1], second);
      }
      sum_[half] += sum;
    }
    return grows;
  }

  /// 0, which takes all weights so far to know.
  __device__ __forceinline__ uint32_t sign_of_sums() const {
    return (__float_as_uint(sum_[0]) | __float_as_uint(sum_[1])) >> 31;
  }

  /// Divide, round and write 16 rows of outputs of a warp through shared memory that nobody else uses.
  ///
  /// Args:
  ///   staged: room for 16 rows, at a multiple of 8 rows from where Rows begin.
  ///   y: the first row; rows are `pitch` elements apart, and `count` of them, maybe none, exist.
  ///   head_size: elements of a row, at most kD.
  template <class Rows, class T, int kBlocks, class Word>
  __device__ __forceinline__ void write(Word const (&o)[kBlocks][4], char* staged, T* y, int64_t pitch, int32_t count,
                                        int32_t head_size) const {
    int const lane = static_cast<int>(threadIdx.x) % 32;
    __syncwarp();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = sum_[half];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      float const inverse = 1.0f / sum;
#pragma unroll
      for (int n = 0; n < kBlocks; ++n) {
        uint32_t const pair =
            round_pair<T>(value_of(o[n][half * 2]) * inverse, value_of(o[n][half * 2 + 1]) * inverse);
        *reinterpret_cast<uint32_t*>(staged + Rows::offset(half * 8 + lane / 4, n) + lane % 4 * 4) = pair;
      }
    }
    __syncwarp();
    bool const vectors = (reinterpret_cast<uintptr_t>(y) & 15) == 0;
#pragma unroll 4
    for (int item = lane; item < 16 * Rows::kChunks; item += 32) {
      int const row = item / Rows::kChunks, chunk = item % Rows::kChunks;
      if (row >= count || chunk * 8 >= head_size) continue;
      T* const target = y + row * pitch + chunk * 8;
      char const* const source = staged + Rows::offset(row, chunk);
      if (vectors) {
        *reinterpret_cast<uint4*>(target) = *reinterpret_cast<uint4 const*>(source);
      } else {
        for (int e = 0; e < 8; ++e) target[e] = reinterpret_cast<T const*>(source)[e];
      }
    }
  }

 private:
  float max_[2] = {-INFINITY, -INFINITY};
  float sum_[2] = {};
};

}  // namespace graphopt::attention
