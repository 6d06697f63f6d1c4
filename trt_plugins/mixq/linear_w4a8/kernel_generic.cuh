// Kernel for any K, any group and any alignment: tiles through shared memory code by code, dp4a for the integer
// product, float FMA for the outliers. Correct rather than fast.
#pragma once

#include "mixq/linear_w4a8/codes.cuh"

namespace graphopt::mixq {

constexpr int kGenericW4Tile = 32;  // rows of X and of W in a block
constexpr int kGenericW4Threads = 256;
constexpr int kGenericW4Columns = 64;                                                     // of K per stage
constexpr int kGenericW4Outputs = kGenericW4Tile * kGenericW4Tile / kGenericW4Threads;  // per thread, along M

/// sg wq4 at row `n`, column `k`, both inside.
template <class T>
__device__ __forceinline__ int8_t grouped_code(LinearW4A8Args<T> const& args, int64_t n, int k) {
  constexpr int kVector = static_cast<int>(32);
  int const byte = args.wq4[n * args.row_bytes + k / kVector * 16 + k % 16];
  int const code = k % kVector < 16 ? static_cast<int8_t>(byte << 4) >> 4 : byte >> 4;
  return static_cast<int8_t>(code * args.sg[int64_t{k / args.group} * args.n + n]);
}

template <class T>
__global__ void __launch_bounds__(kGenericW4Threads) linear_w4a8_generic(LinearW4A8Args<T> const args) {
  __shared__ __align__(16) int8_t xs[kGenericW4Tile][kGenericW4Columns + 4];  // padding: rows start in other banks
  __shared__ __align__(16) int8_t ws[kGenericW4Tile][kGenericW4Columns + 4];
  int const thread = static_cast<int>(threadIdx.x);
  int const column = thread % kGenericW4Tile;
  int const row0 = thread / kGenericW4Tile * kGenericW4Outputs;
  int64_t const m0 = int64_t{blockIdx.x} * kGenericW4Tile, n0 = int64_t{blockIdx.y} * kGenericW4Tile;

  int32_t sums[kGenericW4Outputs] = {};
  for (int start = 0; start < args.k; start += kGenericW4Columns) {
    for (int i = thread; i < kGenericW4Tile * kGenericW4Columns; i += kGenericW4Threads) {
      int const row = i / kGenericW4Columns, k = start + i % kGenericW4Columns;
      bool const inside = k < args.k;
      xs[row][i % kGenericW4Columns] = inside && m0 + row < args.m ? args.xq[(m0 + row) * args.k + k] : int8_t{0};
      ws[row][i % kGenericW4Columns] = inside && n0 + row < args.n ? grouped_code(args, n0 + row, k) : int8_t{0};
    }
    __syncthreads();
#pragma unroll
    for (int b = 0; b < kGenericW4Columns; b += 4) {
      int const w = *reinterpret_cast<int const*>(&ws[column][b]);
#pragma unroll
      for (int i = 0; i < kGenericW4Outputs; ++i) {
        sums[i] = __dp4a(*reinterpret_cast<int const*>(&xs[row0 + i][b]), w, sums[i]);
      }
    }
    __syncthreads();
  }

  int64_t const n = n0 + column;
  if (n >= args.n) return;
  for (int i = 0; i < kGenericW4Outputs; ++i) {
    int64_t const m = m0 + row0 + i;
    if (m >= args.m) return;
    float value = static_cast<float>(sums[i]) * (args.sx[m] * args.sw[n]);
    for (int c = 0; c < args.capacity; ++c) {
      value += to_float(args.xo[m * args.capacity + c]) * to_float(args.wo[n * args.capacity + c]);
    }
    value += to_float(args.bias[n]);
    if (args.residual != nullptr) value += to_float(args.residual[m * args.n + n]);
    args.y[m * args.n + n] = from_float<T>(value);
  }
}

}  // namespace graphopt::mixq
