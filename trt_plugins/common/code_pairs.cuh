// Tables that decode two 4-bit codes, a byte, at once: by shared memory instead of by units of shifts and byte
// permutations.
#pragma once

#include <cstdint>

namespace graphopt {

constexpr int kPairTableBytes = 256 * 4;  // of a type

/// Fill a table [types][256] of two 16-bit numbers, that of a byte's lower code first. By all threads of a block; to be
/// followed by a barrier.
///   number: (type, code) to the number's bits.
template <class Number>
__device__ __forceinline__ void fill_code_pairs(uint4* pairs, int types, Number const& number) {
  constexpr int kCodes = 16, kQuads = kCodes / 4;
  for (int item = static_cast<int>(threadIdx.x); item < types * kCodes; item += static_cast<int>(blockDim.x)) {
    int const type = item / kCodes;
    uint32_t const upper = number(type, item % kCodes) << 16;
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) {
      auto const entry = [&](int i) { return number(type, 4 * quad + i) | upper; };
      pairs[item * kQuads + quad] = {entry(0), entry(1), entry(2), entry(3)};
    }
  }
}

/// Byte kByte of `codes` as two 16-bit numbers. A dot product makes the address, so that no shift does.
///   table: of the type, in the shared address space.
template <int kByte>
__device__ __forceinline__ uint32_t look_up_pair(uint32_t table, uint32_t codes) {
  uint32_t pair;
  asm("ld.shared.u32 %0, [%1];" : "=r"(pair) : "r"(__dp4a(codes, 4u << (8 * kByte), table)));
  return pair;
}

}  // namespace graphopt
