// 4-bit codes -> operands that wgmma takes from registers, with their group's scale already in them: sums go on over
// all of K.
//
// A decoder has
//   X, Sum            types of x and of a sum
//   kColumns          of a stage: those of 128 bytes of x
//   fill(..)          writes the block's table; returns whether negative codes mirror positive ones
//   Group, load(..)   what a lane needs for its two rows of W and a stage
//   decode(..)        the registers of four products
//   row_scale(..)     what the sums of a row of W are multiplied with in the end
#pragma once

#include <cstdint>

#include "mant/linear/codes.cuh"
#include "mant/linear/sm90_prepare.h"

namespace graphopt::mant {

/// A lane's part of four products: [product][register].
using FoldedOperand = uint32_t[4][4];

__device__ __forceinline__ int group_of(LinearArgs const& args, int column) {
  return min(column >> args.group_shift, args.groups - 1);
}

/// T(scale table[code]), 16 bits.
template <class T>
struct FoldedFloat {
  using X = T;
  static constexpr int kColumns = 64;
  static constexpr int kCodeBytes = kColumns / 2;  // of a row of W in a stage

  struct Group {
    uint16_t scale[2];
    uint32_t types[2];
  };

  __device__ __forceinline__ static bool fill(uint4* table, LinearArgs const& args, int thread) {
    return fill_float_table<T>(table, args, thread);
  }

  template <bool>
  __device__ __forceinline__ static void load(Group& of, LinearArgs const& args, FoldedTables const&, int stage,
                                              int const (&channel)[2]) {
    int64_t const group = group_of(args, stage * kColumns);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      int const n = channel[r];
      __half const* scale = args.scale + group * args.n + n;
      int8_t const* types = args.types + group * args.type_bytes + n / 32 * 16 + n % 16;
      asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(of.scale[r]) : "l"(scale));
      asm volatile("ld.global.nc.u8 %0, [%1];" : "=r"(of.types[r]) : "l"(types));
    }
  }

  /// `codes`: of the lane's first row in the stage, whose 32-byte rows the copy engine swizzled: chunk ^ (row / 4 % 2).
  template <bool kSymmetric>
  __device__ __forceinline__ static void decode(FoldedOperand& a, Group const& of, uint32_t codes, uint32_t table,
                                                int row, int const (&channel)[2]) {
    int const lane = static_cast<int>(threadIdx.x) % 32;
    auto const two_16 = static_cast<uint32_t>(opaque(1 << 16));
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      int const type = static_cast<int>(of.types[r] >> (channel[r] / 16 % 2 * 4)) & 15;
      float const scale = __half2float(__ushort_as_half(of.scale[r]));
      uint32_t const pair = round_pair<T>(scale, scale);
      FloatRow entry;
      FloatDecoder<kSymmetric>::load(entry, table + 32 * type);
#pragma unroll
      for (int c = 0; c < 2; ++c) {  // two products of 16 columns
        uint32_t const chunk = codes + 8 * r * kCodeBytes + ((c ^ (row / 4 % 2)) * 16) + lane % 4 * 2;
        uint32_t first[2], second[2];
        FloatDecoder<kSymmetric>::fragments(first, second, entry, load_pairs(chunk), two_16);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          a[2 * c][2 * i + r] = product(first[i], pair);
          a[2 * c + 1][2 * i + r] = product(second[i], pair);
        }
      }
    }
  }

  __device__ __forceinline__ static float row_scale(FoldedTables const&, int) { return 1.0f; }
  __device__ __forceinline__ static float number(uint32_t sum) { return __uint_as_float(sum); }

  /// Products of pairs.
  __device__ __forceinline__ static uint32_t product(uint32_t a, uint32_t b) {
    Pair const ab = __hmul2(reinterpret_cast<Pair const&>(a), reinterpret_cast<Pair const&>(b));
    return reinterpret_cast<uint32_t const&>(ab);
  }

 private:
  using Pair = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;

  /// Codes of columns 2 t, 2 t + 1, 8 + 2 t, 9 + 2 t and of those 16 further on.
  __device__ __forceinline__ static uint32_t load_pairs(uint32_t at) {
    uint16_t low, high;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(low) : "r"(at) : "memory");
    asm volatile("ld.shared.u16 %0, [%1+8];" : "=h"(high) : "r"(at) : "memory");
    return low | static_cast<uint32_t>(high) << 16;
  }
};

/// int8 of a row's scale, looked up in the group's own table.
struct FoldedBytes {
  using X = int8_t;
  static constexpr int kColumns = 128;
  static constexpr int kCodeBytes = kColumns / 2;

  struct Group {
    uint2 positive[2][2];  // [64 columns][row]
    uint2 negative[2][2];
  };

  __device__ __forceinline__ static bool fill(uint4*, LinearArgs const& args, int thread) {
    if (thread >= kTypes) return true;
    auto const* values = static_cast<int8_t const*>(args.table) + thread * kTypes;
    bool mirrored = true;
#pragma unroll
    for (int i = 0; i < kTypes / 2; ++i) mirrored = mirrored && values[i] == -values[kTypes / 2 + i];
    return mirrored;
  }

  template <bool kSymmetric>
  __device__ __forceinline__ static void load(Group& of, LinearArgs const& args, FoldedTables const& tables, int stage,
                                              int const (&channel)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int64_t const group = group_of(args, stage * kColumns + half * (kColumns / 2));
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        int64_t const at = group * args.n + channel[r];
        load_table(of.positive[half][r], tables.positive + at);
        if constexpr (!kSymmetric) load_table(of.negative[half][r], tables.negative + at);
      }
    }
  }

  /// `codes`: of the lane's first row in the stage, whose 64-byte rows the copy engine swizzled: chunk ^ (row / 2 % 4).
  template <bool kSymmetric>
  __device__ __forceinline__ static void decode(FoldedOperand& a, Group const& of, uint32_t codes, uint32_t, int row,
                                                int const (&)[2]) {
    int const lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {  // a product of 32 columns
        uint32_t const at = codes + 8 * r * kCodeBytes + ((c ^ (row / 2 % 4)) * 16) + lane % 4 * 4;
        uint32_t word;
        asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(at) : "memory");
        numbers<kSymmetric>(a[c][r], a[c][2 + r], word, of.positive[c / 2][r], of.negative[c / 2][r]);
      }
    }
  }

  __device__ __forceinline__ static float row_scale(FoldedTables const& tables, int n) {
    return __ldg(tables.row_scale + n);
  }
  __device__ __forceinline__ static float number(uint32_t sum) { return __int2float_rn(static_cast<int32_t>(sum)); }

  /// Numbers of the low and of the high nibbles of a word.
  template <bool kSymmetric>
  __device__ __forceinline__ static void numbers(uint32_t& first, uint32_t& second, uint32_t word,
                                                 uint2 const& positive, uint2 const& negative) {
    uint32_t const magnitude = word & kMagnitudes;
    uint32_t const signs[2] = {byte_signs(word << 4), byte_signs(word)};
    uint32_t p[2];
    look_up(p, positive, magnitude);
    if constexpr (kSymmetric) {
      first = negate_bytes(p[0], signs[0]);
      second = negate_bytes(p[1], signs[1]);
    } else {
      uint32_t n[2];
      look_up(n, negative, magnitude);
      first = (n[0] & signs[0]) | (p[0] & ~signs[0]);
      second = (n[1] & signs[1]) | (p[1] & ~signs[1]);
    }
  }

 private:
  __device__ __forceinline__ static void load_table(uint2& to, uint2 const* from) {
    asm volatile("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(to.x), "=r"(to.y) : "l"(from));
  }

  __device__ __forceinline__ static void look_up(uint32_t (&found)[2], uint2 const& table, uint32_t magnitude) {
    uint32_t const low = permute_bytes(table.x, table.y, magnitude);
    uint32_t const high = permute_bytes(table.x, table.y, magnitude >> 16);
    found[0] = permute_bytes(low, high, 0x6420);
    found[1] = permute_bytes(low, high, 0x7531);
  }
};

}  // namespace graphopt::mant
