// 4-bit codes -> int8 operands that wgmma takes from registers, of one table or of two; sums of a group are scaled.
//
// A decoder has
//   kPlanes           operands made of a word: the products with all of them make up the sum of a group
//   fill(..)          writes the block's table
//   Row, load(..)     what a lane keeps for a row of W and a group
//   decode(..)        the registers that a word makes for its row
//   weight(..)        what the sums of a plane and a group are multiplied with
#pragma once

#include <cstdint>

#include "mant/linear/codes.cuh"

namespace graphopt::mant {

constexpr uint32_t kSecondLow = 0x05020101u, kSecondHigh = 0x793a1b0cu;  // 2^i - i: 1, 1, 2, 5, 12, 27, 58, 121

/// int8 of one table of any numbers.
struct Sm90Bytes {
  static constexpr int kPlanes = 1;

  struct Row {
    uint32_t positive[2], negative[2];
  };

  __device__ __forceinline__ static void fill(uint4* table, LinearArgs const& args, int thread) {
    if (thread >= kTypes) return;
    auto const* values = static_cast<int8_t const*>(args.table) + thread * kTypes;
    uint4 entry = {0, 0, 0, 0};
    uint32_t* words = &entry.x;
#pragma unroll
    for (int i = 0; i < kTypes; ++i) words[i / 4] |= static_cast<uint32_t>(values[i] & 0xff) << (8 * (i % 4));
    table[thread] = entry;
  }

  __device__ __forceinline__ static void load(Row& row, uint32_t table, int type) {
    uint4 const entry = load_shared_16(table + 16 * type);
    row = {{entry.x, entry.y}, {entry.z, entry.w}};
  }

  __device__ __forceinline__ static void decode(uint32_t (&first)[kPlanes], uint32_t (&second)[kPlanes], Row const& row,
                                                uint32_t word) {
    uint32_t const magnitude = word & kMagnitudes;
    uint32_t const low = look_up(row, word, magnitude), high = look_up(row, word >> 16, magnitude >> 16);
    first[0] = permute_bytes(low, high, 0x6420);
    second[0] = permute_bytes(low, high, 0x7531);
  }

  __device__ __forceinline__ static void weight(float (&weights)[kPlanes], float scale, uint32_t, int) {
    weights[0] = scale * (1.0f / 128);
  }

 private:
  __device__ __forceinline__ static uint32_t look_up(Row const& row, uint32_t word, uint32_t magnitude) {
    uint32_t const sign = permute_bytes(kTopBits, kTopBits, word);  // 0xff for a negative code, else 0x80
    uint32_t const negative = (sign & ~kTopBits) | ((sign << 1) & kTopBits);
    return (permute_bytes(row.positive[0], row.positive[1], magnitude) & ~negative) |
           (permute_bytes(row.negative[0], row.negative[1], magnitude) & negative);
  }
};

/// int8 of the two tables i and 2^i - i.
struct Sm90Split {
  static constexpr int kPlanes = 2;

  struct Row {};

  __device__ __forceinline__ static void fill(uint4* table, LinearArgs const&, int thread) {
    if (thread >= kTypes) return;
    SplitType const of = split_type(thread);
    reinterpret_cast<float4*>(table)[thread] = {of.first * of.factor, of.second * of.factor, 0.0f, 0.0f};
  }

  __device__ __forceinline__ static void load(Row&, uint32_t, int) {}

  __device__ __forceinline__ static void decode(uint32_t (&first)[kPlanes], uint32_t (&second)[kPlanes], Row const&,
                                                uint32_t word) {
    constexpr uint32_t kIndices = 0x07070707u;
    uint32_t const magnitude = word & kMagnitudes;
    uint32_t const low = permute_bytes(kSecondLow, kSecondHigh, magnitude);
    uint32_t const high = permute_bytes(kSecondLow, kSecondHigh, magnitude >> 16);
    uint32_t const low_signs = byte_signs(word << 4), high_signs = byte_signs(word);
    first[0] = negate_bytes(word & kIndices, low_signs);
    second[0] = negate_bytes((word >> 4) & kIndices, high_signs);
    first[1] = negate_bytes(permute_bytes(low, high, 0x6420), low_signs);
    second[1] = negate_bytes(permute_bytes(low, high, 0x7531), high_signs);
  }

  __device__ __forceinline__ static void weight(float (&weights)[kPlanes], float scale, uint32_t table, int type) {
    uint2 const of = load_shared_8(table + 16 * type);
    weights[0] = scale * __uint_as_float(of.x);
    weights[1] = scale * __uint_as_float(of.y);
  }
};

}  // namespace graphopt::mant
