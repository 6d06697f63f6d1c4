// How the Hopper M-ANT linears hand y to the copy engine.
#pragma once

#include <cstdint>

#include "common/hopper.cuh"
#include "common/sm90_convert.cuh"
#include "mant/linear/args.cuh"

namespace graphopt::mant {

/// Two values of y as one word.
__device__ __forceinline__ uint32_t rounded_pair(float low, float high, DType dtype) {
  return dtype == DType::kFloat16 ? pack(low, high, __half{}) : pack(low, high, __nv_bfloat16{});
}

/// Write T(sum scale sx + bias) of kTokens tokens from `token` on of 64 rows of W to `buffer`, swizzled as the copy
/// engine expects: chunk of 16 bytes ^ (token % 8).
///   scale, bias: of this lane's two rows, 8 apart.
///   sum(i): register i of those of a warpgroup's product of 64 rows and these tokens.
template <int kTokens, class Sum>
__device__ __forceinline__ void stage_result(LinearArgs const& of, uint32_t buffer, int token, float const (&scale)[2],
                                             float const (&bias)[2], Sum sum) {
  int const lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32 % 4;
  int const chunk = 2 * warp + lane / 8 % 2;
#pragma unroll
  for (int q = 0; q < kTokens / 16; ++q) {
    uint32_t word[4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      int const at = token + 8 * (2 * q + i) + 2 * (lane % 4);
      float sx[2] = {1.0f, 1.0f};
      if (of.sx != nullptr) {
#pragma unroll
        for (int e = 0; e < 2; ++e) sx[e] = __ldg(of.sx + min(int64_t{at} + e, of.m - 1));
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        int const first = 4 * (2 * q + i) + 2 * h;
        word[2 * i + h] = rounded_pair(fmaf(sum(first) * scale[h], sx[0], bias[h]),
                                       fmaf(sum(first + 1) * scale[h], sx[1], bias[h]), of.dtype);
      }
    }
    int const line = 16 * q + lane / 16 * 8 + lane % 8;
    stmatrix_x4_transposed(buffer + line * 128 + ((chunk ^ (lane % 8)) * 16), word[0], word[1], word[2], word[3]);
  }
}

}  // namespace graphopt::mant
