// From a warp's sums to Y, for the kernels of cp.async and mma.sync.
#pragma once

#include <cstdint>

#include "common/vec.cuh"

namespace graphopt::mixq {

/// Scales, adds the bias to, and stores what a warp computes of Y: Tile::kWarpM tokens by Tile::kWarpN rows of W, in
/// mma blocks of 16 x 8.
///
/// Args: has m, n, sx, sw, bias and y, as LinearArgs.
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

  /// Add the bias, round to T, and write Y through `scratch`, kWarpScratch bytes, in rows of whole vectors.
  __device__ __forceinline__ void write(float const (&values)[kBlocksM][kBlocksN][4], char* scratch) const {
    float bias[kBlocksN][2];
#pragma unroll
    for (int j = 0; j < 2 * kBlocksN; ++j) {
      int64_t const n = column_of(j / 2) + j % 2;
      bias[j / 2][j % 2] = n < args_.n ? to_float(__ldg(args_.bias + n)) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kBlocksM; ++i) {
#pragma unroll
      for (int j = 0; j < kBlocksN; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          int const row = lane_ / 4 + half * 8, column = j * 8 + lane_ % 4 * 2;
          Pair const pair{from_float<T>(values[i][j][half * 2] + bias[j][0]),
                          from_float<T>(values[i][j][half * 2 + 1] + bias[j][1])};
          *reinterpret_cast<Pair*>(scratch + row * kRowPitch + column * sizeof(T)) = pair;
        }
      }
      __syncwarp();
      write_rows(scratch, m_ + i * 16);
      __syncwarp();
    }
  }

 private:
  struct alignas(2 * sizeof(T)) Pair {
    T first, second;
  };

  __device__ __forceinline__ int64_t row_of(int i, int half) const { return m_ + i * 16 + half * 8 + lane_ / 4; }
  __device__ __forceinline__ int64_t column_of(int j) const { return n_ + j * 8 + lane_ % 4 * 2; }

  /// Copy 16 staged rows to Y from row `first`.
  __device__ __forceinline__ void write_rows(char const* scratch, int64_t first) const {
    constexpr int kPerVector = Vec<T>::kSize;
    constexpr int kVectors = kRowBytes / 16;  // per row
    bool const vectors = args_.n % kPerVector == 0 && (reinterpret_cast<uintptr_t>(args_.y) & 15) == 0;
#pragma unroll
    for (int v = 0; v < 16 * kVectors / 32; ++v) {
      int const item = v * 32 + lane_;
      int const row = item / kVectors, column = item % kVectors * kPerVector;
      int64_t const n = n_ + column;
      if (first + row >= args_.m || n >= args_.n) continue;
      T const* staged = reinterpret_cast<T const*>(scratch + row * kRowPitch) + column;
      T* y = args_.y + (first + row) * args_.n + n;
      if (vectors) {
        *reinterpret_cast<uint4*>(y) = *reinterpret_cast<uint4 const*>(staged);
      } else {
        for (int e = 0; e < kPerVector && n + e < args_.n; ++e) y[e] = staged[e];
      }
    }
  }

  Args const& args_;
  int64_t m_, n_;
  int lane_;
};

}  // namespace graphopt::mixq
