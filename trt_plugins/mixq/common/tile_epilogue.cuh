// From a warp's sums to Y, for the kernels of cp.async and mma.sync.
#pragma once

#include <cstdint>

#include "common/vec.cuh"

namespace graphopt::mixq {

/// Scales, adds bias and residual to, and stores what a warp computes of Y: Tile::kWarpM tokens by Tile::kWarpN rows of W, in
/// mma blocks of 16 x 8.
///
/// Args: has m, n, sx, sw, bias, residual and y, as LinearArgs.
template <class T, class Tile, class Args>
class TileEpilogue {
 public:
  static constexpr int kBlocksM = Tile::kWarpM / 16;
  static constexpr int kBlocksN = Tile::kWarpN / 8;
  // 16 rows of a warp pass through shared memory at a time; 16 bytes more per row spread them over the banks.
  static constexpr int kRowBytes = Tile::kWarpN * static_cast<int>(sizeof(T));
  static constexpr int kRowPitch = kRowBytes + 16;
  static constexpr int kWarpScratch = 16 * kRowPitch;

  /// `m`, `n`: the warp's first token and row of W.
  __device__ __forceinline__ TileEpilogue(Args const& args, int64_t m, int64_t n, int lane)
      : args_(args), m_(m), n_(n), lane_(lane) {}

  /// values = sums * sx * sw. Rows and columns outside Y get a scale of 0; they are never written.
  __device__ __forceinline__ void scale(int32_t const (&sums)[kBlocksM][kBlocksN][4],
                                        float (&values)[kBlocksM][kBlocksN][4]) const {
    float sx[kBlocksM][2];
#pragma unroll
    for (int i = 0; i < 2 * kBlocksM; ++i) {
      int64_t const m = row_of(i / 2, i % 2);
      sx[i / 2][i % 2] = m < args_.m ? __ldg(args_.sx + m) : 0.0f;
    }
#pragma unroll
    for (int j = 0; j < kBlocksN; ++j) {
      float sw[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) sw[e] = column_of(j) + e < args_.n ? __ldg(args_.sw + column_of(j) + e) : 0.0f;
#pragma unroll
      for (int i = 0; i < kBlocksM; ++i) {
#pragma unroll
        for (int r = 0; r < 4; ++r) values[i][j][r] = static_cast<float>(sums[i][j][r]) * (sx[i][r / 2] * sw[r % 2]);
      }
    }
  }

  /// Add bias and residual, round to T, and write Y through `scratch`, kWarpScratch bytes, in rows of whole vectors.
  __device__ __forceinline__ void write(float const (&values)[kBlocksM][kBlocksN][4], char* scratch) const {
    float bias[kBlocksN][2];
#pragma unroll
    for (int j = 0; j < 2 * kBlocksN; ++j) {
      int64_t const n = column_of(j / 2) + j % 2;
      bias[j / 2][j % 2] = n < args_.n ? to_float(__ldg(args_.bias + n)) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kBlocksM; ++i) {
      if (args_.residual != nullptr) {
        for_each_vector(scratch, m_ + i * 16, [&](T* staged, int64_t at, int64_t left) {
          copy(staged, args_.residual + at, left);
        });
        __syncwarp();
      }
#pragma unroll
      for (int j = 0; j < kBlocksN; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          int const row = lane_ / 4 + half * 8, column = j * 8 + lane_ % 4 * 2;
          auto* const pair = reinterpret_cast<Pair*>(scratch + row * kRowPitch + column * sizeof(T));
          float low = values[i][j][half * 2] + bias[j][0], high = values[i][j][half * 2 + 1] + bias[j][1];
          if (args_.residual != nullptr) low += to_float(pair->first), high += to_float(pair->second);
          *pair = {from_float<T>(low), from_float<T>(high)};
        }
      }
      __syncwarp();
      for_each_vector(scratch, m_ + i * 16, [&](T const* staged, int64_t at, int64_t left) {
        copy(args_.y + at, staged, left);
      });
      __syncwarp();
    }
  }

 private:
  struct alignas(2 * sizeof(T)) Pair {
    T first, second;
  };

  __device__ __forceinline__ int64_t row_of(int i, int half) const { return m_ + i * 16 + half * 8 + lane_ / 4; }
  __device__ __forceinline__ int64_t column_of(int j) const { return n_ + j * 8 + lane_ % 4 * 2; }

  /// Call visit(staged, at, left) for this lane's vectors of 16 rows of Y from row `first`: where one is in `scratch` and
  /// in Y, and how many columns of Y there are from it on.
  template <class Visit>
  __device__ __forceinline__ void for_each_vector(char* scratch, int64_t first, Visit&& visit) const {
    constexpr int kVectors = kRowBytes / 16;  // per row
#pragma unroll
    for (int v = 0; v < 16 * kVectors / 32; ++v) {
      int const item = v * 32 + lane_;
      int const row = item / kVectors, column = item % kVectors * Vec<T>::kSize;
      int64_t const n = n_ + column;
      if (first + row >= args_.m || n >= args_.n) continue;
      visit(reinterpret_cast<T*>(scratch + row * kRowPitch) + column, (first + row) * args_.n + n, args_.n - n);
    }
  }

  /// Copy a vector, or what is left of it.
  __device__ __forceinline__ static void copy(T* to, T const* from, int64_t left) {
    bool const aligned = ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) & 15) == 0;
    if (aligned && left >= Vec<T>::kSize) {
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<uint4 const*>(from);
    } else {
      for (int e = 0; e < Vec<T>::kSize && e < left; ++e) to[e] = from[e];
    }
  }

  Args const& args_;
  int64_t m_, n_;
  int lane_;
};

}  // namespace graphopt::mixq
