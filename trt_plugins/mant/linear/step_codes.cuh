// 4-bit codes of Decode::kSplit -> float16 by arithmetic: factor (a i + b 2^i), i a code's magnitude index, b 0 or 1.
//
// With i in bits 8 to 10 of a half, where they count 2^-16, i << 10 is the exponent of 2^(i - 15): a mask, an integer
// product and sum, a half product and sum, and a sign make two numbers (a i + b 2^i) 2^-14, without an error, by
// instructions of which the units of shifts and byte permutations take only half. What is left of a type, factor 2^14,
// belongs to its group's scale. A word's codes pair up as they lie 16 bits apart: those of bytes 0 and 2, and 1 and 3.
#pragma once

#include <cstdint>

#include "mant/linear/codes.cuh"

namespace graphopt::mant {

/// What a lane keeps for a row of W.
struct StepRow {
  uint32_t step;   // 4 a, twice
  uint32_t raise;  // 4 b
  uint32_t one;    // b 2^-14, twice
  float factor;    // 2^14 factor
};

constexpr int kStepEntryBytes = sizeof(StepRow);

/// Write the block's table of StepRow, a thread for each type.
__device__ __forceinline__ void fill_steps(uint4* table, int type) {
  if (type >= kTypes) return;
  SplitType const of = split_type(type);
  __half2 const step = __float2half2_rn(4.0f * static_cast<float>(of.first - of.second));
  bool const power = of.second != 0;
  table[type] = {reinterpret_cast<uint32_t const&>(step), power ? 4u : 0u, power ? 0x04000400u : 0u,
                 __float_as_uint(of.factor * 16384.0f)};
}

struct StepDecoder {
  /// `entry`: of a type in the block's table, in the shared address space.
  __device__ __forceinline__ static void load(StepRow& row, uint32_t entry) {
    uint4 const v = load_shared_16(entry);
    row = {v.x, v.y, v.z, __uint_as_float(v.w)};
  }

  /// first: low codes of bytes 0 and 2, and 1 and 3; second: high ones.
  __device__ __forceinline__ static void fragments(uint32_t (&first)[2], uint32_t (&second)[2], StepRow const& row,
                                                   uint32_t word) {
    uint32_t const by_4 = word << 4, by_8 = word << 8;
    first[0] = number(row, by_8, word << 12);
    second[0] = number(row, by_4, by_8);
    first[1] = number(row, word, by_4);
    second[1] = number(row, word >> 4, word);
  }

 private:
  /// `index`: i in bits 8 to 10 and 24 to 26; `sign`: signs in bits 15 and 31.
  __device__ __forceinline__ static uint32_t number(StepRow const& row, uint32_t index, uint32_t sign) {
    uint32_t const i = index & 0x07000700u, power = i * row.raise + row.one;
    __half2 const sum = __hfma2(reinterpret_cast<__half2 const&>(i), reinterpret_cast<__half2 const&>(row.step),
                                reinterpret_cast<__half2 const&>(power));
    return reinterpret_cast<uint32_t const&>(sum) ^ (sign & 0x80008000u);
  }
};

}  // namespace graphopt::mant
