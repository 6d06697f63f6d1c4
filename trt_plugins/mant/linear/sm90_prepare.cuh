// Kernels that prepare operands of the Hopper M-ANT linears for many tokens, see sm90_prepare.h.
#pragma once

#include <cstdint>

#include "common/launch.h"
#include "common/ptx.cuh"
#include "mant/linear/codes.cuh"
#include "mant/linear/sm90_prepare.h"

namespace graphopt::mant {

constexpr int kWidenThreads = 256;

/// int8 -> float16, exact: `vectors` times 16 of them.
__global__ void __launch_bounds__(kWidenThreads) widen_x(uint4 const* __restrict__ x, uint4* __restrict__ wide,
                                                         int64_t vectors) {
  release_successor();  // the linear may bring in weights under the kernels before this one, and waits for all of them
  wait_for_predecessor();
  int64_t const i = int64_t{blockIdx.x} * kWidenThreads + static_cast<int>(threadIdx.x);
  if (i >= vectors) return;
  uint4 const v = x[i];
  uint32_t const words[4] = {v.x, v.y, v.z, v.w};
  uint32_t pairs[8];
#pragma unroll
  for (int w = 0; w < 4; ++w) widen(pairs[2 * w], pairs[2 * w + 1], words[w]);
  wide[2 * i] = {pairs[0], pairs[1], pairs[2], pairs[3]};
  wide[2 * i + 1] = {pairs[4], pairs[5], pairs[6], pairs[7]};
}

constexpr int kFoldRows = 32;    // of W, of a block
constexpr int kFoldGroups = 16;  // at once

/// The larger one, NaN if one is NaN.
__device__ __forceinline__ float larger(float a, float b) {
  float c;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
  return c;
}

/// Eight numbers of at most 127 in magnitude, times `ratio`, rounded to int8.
__device__ __forceinline__ uint2 round_bytes(int8_t const* values, float ratio) {
  constexpr float kShift = 12582912.0f;  // 1.5 2^23: the last bits of a sum count ones
  uint32_t words[2];
#pragma unroll
  for (int w = 0; w < 2; ++w) {
    uint32_t bytes[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) bytes[i] = __float_as_uint(fmaf(static_cast<float>(values[4 * w + i]), ratio, kShift));
    uint32_t const low = permute_bytes(bytes[0], bytes[1], 0x0040), high = permute_bytes(bytes[2], bytes[3], 0x0040);
    words[w] = permute_bytes(low, high, 0x5410);
  }
  return {words[0], words[1]};
}

/// FoldedTables of all groups.
__global__ void __launch_bounds__(kFoldRows * kFoldGroups) fold_tables(LinearArgs const args, FoldedTables const out) {
  __shared__ int8_t table[kTypes * kTypes];
  __shared__ float largest_of[kTypes];
  __shared__ float largest[kFoldGroups][kFoldRows];
  wait_for_predecessor();
  release_successor();
  int const thread = static_cast<int>(threadIdx.x);
  if (thread < kTypes * kTypes) table[thread] = static_cast<int8_t const*>(args.table)[thread];
  __syncthreads();
  bool mirrored = true;
  if (thread < kTypes * kTypes) mirrored = table[thread & ~8] == -table[thread | 8];
  bool const symmetric = __syncthreads_and(mirrored);
  if (thread < kTypes) {
    int most = 0;
    for (int i = 0; i < kTypes; ++i) most = max(most, abs(static_cast<int>(table[thread * kTypes + i])));
    largest_of[thread] = static_cast<float>(most);
  }
  __syncthreads();

  int const row = thread % kFoldRows, part = thread / kFoldRows;
  int64_t const n = int64_t{blockIdx.x} * kFoldRows + row, read = min(n, args.n - 1);
  auto const type_of = [&](int64_t g) {
    int8_t const types = args.types[g * args.type_bytes + read / 32 * 16 + read % 16];
    return types >> (read / 16 % 2 * 4) & 15;
  };
  float most = 0.0f;
  for (int g = part; g < args.groups; g += kFoldGroups) {
    most = larger(most, fabsf(__half2float(args.scale[int64_t{g} * args.n + read])) * largest_of[type_of(g)]);
  }
  largest[part][row] = most;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kFoldGroups; ++i) most = larger(most, largest[i][row]);
  if (n >= args.n) return;
  if (part == 0) out.row_scale[n] = most / (127.0f * 128.0f);
  float const per_unit = most > 0.0f ? 127.0f / most : 0.0f;
  for (int g = part; g < args.groups; g += kFoldGroups) {
    float const ratio = __half2float(args.scale[int64_t{g} * args.n + n]) * per_unit;
    int8_t const* values = table + type_of(g) * kTypes;
    out.positive[int64_t{g} * args.n + n] = round_bytes(values, ratio);
    if (!symmetric) out.negative[int64_t{g} * args.n + n] = round_bytes(values + kTypes / 2, ratio);
  }
}

}  // namespace graphopt::mant
