// How a lane reads codes: a few words hold whole vectors, whatever v, b and r are.
#pragma once

#include <cstdint>

#include "common/ptx.cuh"
#include "vq/linear/lane_columns.h"

namespace graphopt::vq {

/// Code number i, which is known at compile time, of b bits each from the first bit of `word` on.
template <int b, int kWords>
__device__ __forceinline__ uint32_t code_of(uint32_t const (&word)[kWords], int i) {
  int const bit = i * b, at = bit / 32, shift = bit % 32;
  if constexpr (b == 8) return __byte_perm(word[at], 0, 0x4440 + shift / 8);
  constexpr uint32_t kMask = (uint32_t{1} << b) - 1;
  if (shift + b <= 32) return (word[at] >> shift) & kMask;
  return __funnelshift_r(word[at], word[at + 1 < kWords ? at + 1 : at], shift) & kMask;
}

/// Load kCount words from byte `first` of `row` on; what lies behind its `row_bytes` bytes reads as zero. Volatile, so
/// that loads start where they are written.
template <int kCount>
__device__ __forceinline__ void load_codes(uint32_t (&word)[kCount], int8_t const* row, int first, int row_bytes) {
  constexpr int kVector = kCount % 4 == 0 ? 4 : kCount % 2 == 0 ? 2 : 1;
#pragma unroll
  for (int i = 0; i < kCount; i += kVector) {
    uint32_t* const w = word + i;
    int const byte = first + 4 * i;
#pragma unroll
    for (int e = 0; e < kVector; ++e) w[e] = 0;
    if (byte >= row_bytes) continue;
    int8_t const* const pointer = row + byte;
    if constexpr (kVector == 4) {
      asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
                   : "l"(pointer));
    } else if constexpr (kVector == 2) {
      asm volatile("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(w[0]), "=r"(w[1]) : "l"(pointer));
    } else {
      asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(w[0]) : "l"(pointer));
    }
  }
}

/// Codes of VQ<v, b, r> by lanes: kColumns consecutive columns of a row lie in kBytes consecutive bytes.
template <int kVector_, int kBits_, int kResiduals_>
struct LaneCodes {
  static constexpr int kVector = kVector_;
  static constexpr int kBits = kBits_;
  static constexpr int kResiduals = kResiduals_;

  /// Bits of so many columns.
  static constexpr int bits_of(int columns) { return bits_of_columns(columns, kVector, kBits, kResiduals); }

  static constexpr int kColumns = lane_columns(kVector, kBits, kResiduals);
  static constexpr int kBytes = bits_of(kColumns) / 8;
  static constexpr int kWords = kBytes / 4;

  uint32_t word[kWords];

  __device__ __forceinline__ void load(int8_t const* row, int first, int row_bytes) {
    load_codes(word, row, first, row_bytes);
  }

  /// Code i: residual i % r of vector i / r.
  __device__ __forceinline__ uint32_t code(int i) const { return code_of<kBits>(word, i); }
};

}  // namespace graphopt::vq
