// Codes of many new tokens: tensor cores rank the centroids, and what could be the nearest is compared exactly.
//
// x . c - |c|^2 / 2 is largest for the nearest centroid c. A warp has a codebook in its registers, as the B operand of
// products in TF32, which holds 16-bit numbers exactly; |c|^2 / 2 is three of its rows, the same three of A are ones.
// Each lane keeps the largest score of every 8 centroids that it meets for two tokens. Those of which it is within the
// rounding of both sides are looked at again, with the distances of the definition.
#pragma once

#include <cstdint>

#include "attention/mma.cuh"
#include "attention/vq/encode.cuh"

namespace graphopt::attention {

constexpr int kRankTokens = 16;  // rows of an mma
constexpr int kRankSets = 8;     // of 32 centroids, 8 of which a lane meets

/// Element k of a column of B or a row of A: those of the vector, then three more, then zeros.
template <int kVector>
__device__ __forceinline__ uint32_t ranked_element(int k, float const (&x)[kVector], float const (&more)[3]) {
  float element = 0.0f;
#pragma unroll
  for (int i = 0; i < kVector + 3; ++i) {
    if (i == k) element = i < kVector ? x[i < kVector ? i : 0] : more[i < kVector ? 0 : i - kVector];
  }
  return __float_as_uint(element);
}

/// A codebook as a warp holds it.
template <class T, int kVector>
class RankedBook {
  static_assert(kVector + 3 <= 8, "elements and halves of squares are the 8 rows of an mma's B");

 public:
  /// shared: [256, kVector], this warp's.
  __device__ __forceinline__ RankedBook(T const* book, float* shared) : shared_(shared), t_(lane() % 4) {
    float largest = 0.0f;
#pragma unroll
    for (int n = 0; n < kEntries / 8; ++n) {
      int const code = n * 8 + lane() / 4;
      float c[kVector], square = 0.0f;
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        c[i] = to_float(book[code * kVector + i]);
        square += c[i] * c[i];
        if (t_ == 0) shared_[code * kVector + i] = c[i];
      }
      largest = fmaxf(largest, square);
      float rest = -0.5f * square, more[3];
#pragma unroll
      for (int part = 0; part < 3; ++part) {
        more[part] = __uint_as_float(round_to_tf32(rest));
        rest -= more[part];
      }
      b_[n][0] = ranked_element(t_, c, more);
      b_[n][1] = ranked_element(t_ + 4, c, more);
    }
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, offset));
    }
    length_ = sqrtf(largest);
    __syncwarp();
  }

  /// Codes of vectors x[0] and x[1], rows lane / 4 and lane / 4 + 8 of 16. Called by whole warps.
  __device__ __forceinline__ void nearest(float const (&x)[2][kVector], uint32_t (&code)[2]) const {
    float const ones[3] = {1.0f, 1.0f, 1.0f};
    uint32_t const a[4] = {ranked_element(t_, x[0], ones), ranked_element(t_, x[1], ones),
                           ranked_element(t_ + 4, x[0], ones), ranked_element(t_ + 4, x[1], ones)};
    float best[2][kRankSets];
#pragma unroll
    for (int set = 0; set < kRankSets; ++set) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float s[4];
        multiply_tf32(s, a, b_[set * 4 + i][0], b_[set * 4 + i][1]);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float const larger = fmaxf(s[2 * r], s[2 * r + 1]);
          best[r][set] = i == 0 ? larger : fmaxf(best[r][set], larger);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) code[r] = decide(x[r], best[r]);
  }

 private:
  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }

  /// The nearest centroid, ties to the lowest code; 0 where no distance is finite.
  __device__ __forceinline__ uint32_t decide(float const (&x)[kVector], float const (&best)[kRankSets]) const {
    float largest = best[0], square = 0.0f;
#pragma unroll
    for (int set = 1; set < kRankSets; ++set) largest = fmaxf(largest, best[set]);
#pragma unroll
    for (int i = 0; i < kVector; ++i) square += x[i] * x[i];
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
    // Scores and halves of distances are at most (|x| + |c|)^2; neither side has 64 roundings of 2^-24 of that.
    float const reach = sqrtf(square) + length_, least = largest - (0x1p-18f * (reach * reach) + 1e-36f);
    float distance = INFINITY;
    uint32_t code = 0;
    uint32_t sets = 0;
#pragma unroll
    for (int set = 0; set < kRankSets; ++set) sets |= best[set] >= least ? 1u << set : 0u;
    for (; sets != 0; sets &= sets - 1) look_again(x, __ffs(static_cast<int>(sets)) - 1, distance, code);
#pragma unroll
    for (int offset = 1; offset < 4; offset *= 2) {
      float const other = __shfl_xor_sync(0xffffffffu, distance, offset);
      uint32_t const its = __shfl_xor_sync(0xffffffffu, code, offset);
      if (other < distance || (other == distance && its < code)) distance = other, code = its;
    }
    return code;
  }

  __device__ __forceinline__ void look_again(float const (&x)[kVector], int set, float& distance, uint32_t& code) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      int const candidate = set * 32 + i / 2 * 8 + 2 * t_ + i % 2;
      float const its = squared_distance(x, shared_ + candidate * kVector);
      if (its < distance) distance = its, code = static_cast<uint32_t>(candidate);
    }
  }

  float* shared_;
  int t_;
  float length_;  // of the longest centroid
  uint32_t b_[kEntries / 8][2];
};

/// As attention_encode, for many tokens of a 16-bit T.
template <class T, int kVector>
__global__ void __launch_bounds__(32 * kEncodeWarps, 2) attention_rank(EncodeArgs<T> const args) {
  AppendArgs<T> const& a = args.append;
  if (static_cast<int32_t>(blockIdx.x) >= args.blocks) return append_queries(args);
  __shared__ float shared[kEncodeWarps][kEntries * kVector];
  int32_t const warp = static_cast<int32_t>(threadIdx.x) / 32, lane = static_cast<int32_t>(threadIdx.x) % 32;
  int32_t const groups = a.head_size / kVector, units = a.kv_heads * groups;
  int32_t unit = static_cast<int32_t>(blockIdx.x) * kEncodeWarps + warp;
  if (unit >= 2 * units) return;
  bool const value = unit >= units;
  unit -= value ? units : 0;
  RankedBook<T, kVector> const book(
      (value ? args.codebook_v : args.codebook_k) + int64_t{unit} * kEntries * kVector, shared[warp]);
  wait_for_predecessor();
  release_successor();
  int64_t const step = int64_t{gridDim.y} * kRankTokens;
  for (int64_t first = int64_t{blockIdx.y} * kRankTokens; first < args.tokens; first += step) {
    // Four lanes share two vectors: each loads half of one.
    constexpr int kHalf = kVector / 2;
    int64_t const mine = min(first + lane / 4 + lane % 4 / 2 * 8, args.tokens - 1);
    float half[kHalf], x[2][kVector];
    load_vector<T, kHalf>(args, value, mine, unit / groups, unit % groups * kVector + lane % 2 * kHalf, half);
#pragma unroll
    for (int e = 0; e < 2 * kVector; ++e) {
      x[e / kVector][e % kVector] = __shfl_sync(0xffffffffu, half[e % kHalf], lane / 4 * 4 + e / kHalf);
    }
    uint32_t code[2];
    book.nearest(x, code);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      int64_t const token = first + lane / 4 + 8 * r;
      if (lane % 4 == r && token < args.tokens) {
        store_code(args, value, static_cast<uint32_t>(token), unit, groups, code[r]);
      }
    }
  }
}

}  // namespace graphopt::attention
