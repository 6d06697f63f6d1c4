// Pieces of attention on tensor cores: 16-bit products, and rows of the cache in shared memory.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/ptx.cuh"

namespace graphopt::attention {

/// c += a b over 16 elements of a 16-bit T.
template <class T>
__device__ __forceinline__ void mma_16bit(float (&c)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
  static_assert(sizeof(T) == 2, "float32 takes the kernels without tensor cores");
  if constexpr (std::is_same_v<T, __half>) {
    mma_f16(c, a, b0, b1);
  } else {
    mma_bf16(c, a, b0, b1);
  }
}

/// d = a b + c over 8 elements, all float16: two neighbouring columns to a word of c and d.
__device__ __forceinline__ void mma_f16_short(uint32_t (&d)[2], uint32_t const (&a)[2], uint32_t b,
                                              uint32_t const (&c)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16 {%0, %1}, {%2, %3}, {%4}, {%5, %6};"
      : "=r"(d[0]), "=r"(d[1])
      : "r"(a[0]), "r"(a[1]), "r"(b), "r"(c[0]), "r"(c[1]));
}

/// Transpose an 8 x 8 matrix of 16-bit elements that a warp holds, row lane / 4, columns 2 (lane % 4)...
__device__ __forceinline__ uint32_t transpose_8x8(uint32_t row) {
  uint32_t column;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(column) : "r"(row));
  return column;
}

/// 2^x to 2 ulp, 0 for -infinity.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// Rows of kD 16-bit elements in shared memory such that ldmatrix, which reads one chunk of 8 rows, finds them in
/// different banks: chunks are exchanged by row where a row is a multiple of 128 bytes, else rows are 16 bytes longer.
template <int kD>
struct StagedRows {
  static constexpr int kChunks = kD / 8;  // of 16 bytes
  static constexpr bool kExchange = kChunks % 8 == 0;
  static constexpr int kPitch = kD * 2 + (kExchange ? 0 : 16);
  static_assert(kExchange || kPitch / 16 % 2 == 1, "an odd number of chunks visits all banks");

  __device__ __forceinline__ static uint32_t offset(int row, int chunk) {
    // The two terms of a chunk, so that those known at compile time end up in the instruction.
    return static_cast<uint32_t>(row * kPitch + (kExchange ? (chunk >> 3) * 128 + ((chunk ^ row) & 7) * 16 : chunk * 16));
  }
};

}  // namespace graphopt::attention
