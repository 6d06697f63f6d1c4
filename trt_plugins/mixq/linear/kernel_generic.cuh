// Kernel for any K and any alignment: tiles through shared memory byte by byte, dp4a for the integer product, float FMA
// for the outliers. Correct rather than fast.
#pragma once

#include "mixq/linear/kernel_common.cuh"

namespace graphopt::mixq {

constexpr int kGenericTile = 32;  // rows of X and of W in a block
constexpr int kGenericThreads = 256;
constexpr int kGenericBytes = 64;                                               // of K per stage
constexpr int kGenericOutputs = kGenericTile * kGenericTile / kGenericThreads;  // per thread, along M

/// Copy rows [first, first + kGenericTile) x bytes [start, start + kGenericBytes) of source [rows, bytes]; zeros
/// outside.
__device__ __forceinline__ void stage_bytes(int8_t (*tile)[kGenericBytes + 4], int8_t const* source, int64_t first,
                                            int64_t rows, int bytes, int start) {
  for (int i = static_cast<int>(threadIdx.x); i < kGenericTile * kGenericBytes; i += kGenericThreads) {
    int const row = i / kGenericBytes, byte = i % kGenericBytes;
    bool const inside = first + row < rows && start + byte < bytes;
    tile[row][byte] = inside ? source[(first + row) * bytes + start + byte] : int8_t{0};
  }
}

template <class T>
__global__ void __launch_bounds__(kGenericThreads) linear_generic(LinearArgs<T> const args) {
  __shared__ __align__(16) int8_t xs[kGenericTile][kGenericBytes + 4];  // 4 bytes of padding: rows start in other banks
  __shared__ __align__(16) int8_t ws[kGenericTile][kGenericBytes + 4];
  int const column = static_cast<int>(threadIdx.x) % kGenericTile;
  int const row0 = static_cast<int>(threadIdx.x) / kGenericTile * kGenericOutputs;
  int64_t const m0 = int64_t{blockIdx.x} * kGenericTile, n0 = int64_t{blockIdx.y} * kGenericTile;

  int32_t sums[kGenericOutputs] = {};
  for (int start = 0; start < args.k; start += kGenericBytes) {
    stage_bytes(xs, args.xq, m0, args.m, args.k, start);
    stage_bytes(ws, args.wq, n0, args.n, args.k, start);
    __syncthreads();
#pragma unroll
    for (int b = 0; b < kGenericBytes; b += 4) {
      int const w = *reinterpret_cast<int const*>(&ws[column][b]);
#pragma unroll
      for (int i = 0; i < kGenericOutputs; ++i) {
        sums[i] = __dp4a(*reinterpret_cast<int const*>(&xs[row0 + i][b]), w, sums[i]);
      }
    }
    __syncthreads();
  }

  int64_t const n = n0 + column;
  if (n >= args.n) return;
  for (int i = 0; i < kGenericOutputs; ++i) {
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
