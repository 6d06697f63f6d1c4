// 4-bit codes of M-ANT groups to float16, in registers.
#pragma once

#include <cstdint>
#include <cstring>

#include "attention/mant/encode.cuh"
#include "common/ptx.cuh"
#include "common/vec.cuh"

namespace graphopt::attention {

/// Bytes 0 and 2, integers plus 128, to float16.
__device__ __forceinline__ uint32_t biased_pair(uint32_t bytes) {
  uint32_t const shifted = (bytes & 0x00ff00ffu) | 0x64006400u;  // 1024 + byte
  uint32_t pair;
  asm("sub.f16x2 %0, %1, %2;" : "=r"(pair) : "r"(shifted), "r"(0x64806480u));
  return pair;
}

/// Words of two groups, side by side in one register.
struct MantWords {
  uint32_t both;

  __device__ __forceinline__ float2 scales() const {
    uint32_t const bits = both & 0xfff0fff0u;
    __half2 pair;
    memcpy(&pair, &bits, sizeof(pair));
    return __half22float2(pair);
  }

  /// base + 16 type of group kGroup.
  template <int kGroup>
  __device__ __forceinline__ uint32_t entry(uint32_t base) const {
    return __dp4a(both & 0x000f000fu, 16u << (16 * kGroup), base);
  }
};

/// Magnitudes of a type: the lower and upper bytes of eight float16.
struct MantTable {
  uint32_t low[2], high[2];

  __device__ __forceinline__ MantTable(char const* tables, uint32_t word) {
    uint4 const t = *reinterpret_cast<uint4 const*>(tables + (word & 15u) * 16u);
    low[0] = t.x, low[1] = t.y, high[0] = t.z, high[1] = t.w;
  }
  /// `entry`: of the type in fill_mant_tables' table, in the shared address space.
  __device__ __forceinline__ explicit MantTable(uint32_t entry) {
    asm("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(low[0]), "=r"(low[1]), "=r"(high[0]), "=r"(high[1])
        : "r"(entry));
  }

  /// Four codes, in the lower half of `codes`, to float16. `unsigned_codes` is `codes` without sign bits.
  ///
  /// Returns: the first and the third to `even`, the others to `odd`.
  __device__ __forceinline__ void decode(uint32_t codes, uint32_t unsigned_codes, uint32_t& even, uint32_t& odd) const {
    uint32_t const lower = permute_bytes(low[0], low[1], unsigned_codes), upper = upper_bytes(codes, unsigned_codes);
    even = permute_bytes(lower, upper, 0x6240u);
    odd = permute_bytes(lower, upper, 0x7351u);
  }

  /// The same in pairs as they stand in bytes: the first and the second to `first`.
  __device__ __forceinline__ void decode_bytes(uint32_t codes, uint32_t unsigned_codes, uint32_t& first,
                                               uint32_t& second) const {
    uint32_t const lower = permute_bytes(low[0], low[1], unsigned_codes), upper = upper_bytes(codes, unsigned_codes);
    first = permute_bytes(lower, upper, 0x5140u);
    second = permute_bytes(lower, upper, 0x7362u);
  }

 private:
  /// Upper bytes of four numbers, with their signs.
  __device__ __forceinline__ uint32_t upper_bytes(uint32_t codes, uint32_t unsigned_codes) const {
    // 0x80 for a positive code; eight copies of the top bit, that is 0xff, for a negative one: bit 6 is the sign.
    uint32_t const sign = permute_bytes(0x80808080u, 0x80808080u, codes) * 2u;
    return permute_bytes(high[0], high[1], unsigned_codes) | (sign & 0x80808080u);
  }
};

/// Fill the tables of all types; to be followed by a barrier.
__device__ __forceinline__ void fill_mant_tables(char* tables) {
  int const threads = static_cast<int>(blockDim.x);
  for (int item = static_cast<int>(threadIdx.x); item < kMantTypes * kMagnitudes; item += threads) {
    int const type = item / kMagnitudes, i = item % kMagnitudes;
    // Not through __half_as_ushort: nvcc 13.0 makes the lower byte of a conversion to an integer out of it.
    uint32_t const bits = round_pair<__half>(kMant.type[type].magnitude[i], 0.0f);
    tables[type * 16 + i] = static_cast<char>(bits & 0xffu);
    tables[type * 16 + 8 + i] = static_cast<char>(bits >> 8);
  }
}

}  // namespace graphopt::attention
