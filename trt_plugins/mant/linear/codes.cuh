// 4-bit codes -> operands of tensor cores, by byte permutes.
//
// A word holds codes 4 j.. of a vector of 32 in its low nibbles and codes 16 + 4 j.. in its high ones. A permute looks
// up the four nibbles of its selector's lower half in a table of eight bytes: the low and high nibble of byte 0, then
// those of byte 1; another one puts the results in order. A lane's pair of fragments of such a word is called first
// (codes 4 j..) and second (16 + 4 j..).
#pragma once

#include <cstdint>

#include "common/ptx.cuh"
#include "mant/linear/args.cuh"

namespace graphopt::mant {

constexpr uint32_t kMagnitudes = 0x77777777u;  // of eight codes
constexpr uint32_t kTopBits = 0x80808080u;     // of four bytes

__device__ __forceinline__ uint2 load_shared_8(uint32_t shared) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(shared) : "memory");
  return v;
}

__device__ __forceinline__ uint4 load_shared_16(uint32_t shared) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(shared)
               : "memory");
  return v;
}

__device__ __forceinline__ uint32_t load_shared_4(uint32_t shared) {
  uint32_t v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(shared) : "memory");
  return v;
}

__device__ __forceinline__ uint32_t load_shared_byte(uint32_t shared) {
  uint32_t v;
  asm volatile("ld.shared.u8 %0, [%1];" : "=r"(v) : "r"(shared) : "memory");
  return v;
}

__device__ __forceinline__ float load_shared_half(uint32_t shared) {
  uint16_t bits;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(bits) : "r"(shared) : "memory");
  return __half2float(__ushort_as_half(bits));
}

/// Bytes 0xff where the top bit of a byte of `word` is set, else 0.
__device__ __forceinline__ uint32_t byte_signs(uint32_t word) { return permute_bytes(word, word, 0xba98); }

/// -v where `signs` is 0xff, else v, for bytes v of 0 to 127.
__device__ __forceinline__ uint32_t negate_bytes(uint32_t value, uint32_t signs) {
  uint32_t const negative = kTopBits - value;  // no byte borrows from the next
  return ((negative & signs) | (value & ~signs)) ^ (signs & kTopBits);
}

/// Four codes' low and high bytes -> pairs of 16-bit numbers: codes 0 and 2 of the selector, and 1 and 3.
__device__ __forceinline__ uint32_t even_pair(uint32_t low, uint32_t high) { return permute_bytes(low, high, 0x6240); }
__device__ __forceinline__ uint32_t odd_pair(uint32_t low, uint32_t high) { return permute_bytes(low, high, 0x7351); }

/// The same as they stand in bytes: codes 0 and 1, and 2 and 3.
__device__ __forceinline__ uint32_t first_byte(uint32_t low, uint32_t high) { return permute_bytes(low, high, 0x5140); }
__device__ __forceinline__ uint32_t second_byte(uint32_t low, uint32_t high) {
  return permute_bytes(low, high, 0x7362);
}

/// Four int8 as half, exact: those of bytes 0 and 1, and 2 and 3; with kAlternate 0 and 2, and 1 and 3.
template <bool kAlternate = false>
__device__ __forceinline__ void widen(uint32_t& first, uint32_t& second, uint32_t word) {
  constexpr uint32_t kThousand = 0x64646464u;  // the high byte of 1024 and more, where the low byte counts ones
  uint32_t const raised = word ^ kTopBits;
  __half2 const offset = __floats2half2_rn(1024.0f + 128.0f, 1024.0f + 128.0f);
  uint32_t const pairs[2] = {permute_bytes(raised, kThousand, kAlternate ? 0x4240 : 0x4140),
                             permute_bytes(raised, kThousand, kAlternate ? 0x4341 : 0x4342)};
  __half2 const low = __hsub2(reinterpret_cast<__half2 const&>(pairs[0]), offset);
  __half2 const high = __hsub2(reinterpret_cast<__half2 const&>(pairs[1]), offset);
  first = reinterpret_cast<uint32_t const&>(low);
  second = reinterpret_cast<uint32_t const&>(high);
}

/// Low and high bytes of the eight magnitudes of a type as 16-bit numbers.
struct Magnitudes {
  uint32_t low[2];
  uint32_t high[2];
};

/// What a lane keeps for a row of W of 16-bit numbers; the second only where negative codes do not mirror positive
/// ones.
struct FloatRow {
  Magnitudes positive, negative;
};

template <class T>
__device__ __forceinline__ uint16_t table_bits(__half value) {
  if constexpr (sizeof(T) == 2 && !std::is_same_v<T, __half>) {
    return __bfloat16_as_ushort(__float2bfloat16_rn(__half2float(value)));
  } else {
    return __half_as_ushort(value);
  }
}

/// What code `code` of type `type` stands for, exact.
__device__ __forceinline__ __half table_value(LinearArgs const& args, int type, int code) {
  int const at = type * kTypes + code;
  if (args.decode == Decode::kFloat) return static_cast<__half const*>(args.table)[at];
  if (args.decode == Decode::kBytes) return __float2half_rn(static_cast<int8_t const*>(args.table)[at] * (1.0f / 128));
  SplitType const of = split_type(type);
  int const i = code & 7, magnitude = of.first * i + of.second * ((1 << i) - i);
  return __float2half_rn((code < 8 ? magnitude : -magnitude) * of.factor);
}

constexpr int kFloatEntries = 2 * kTypes;  // of 16 bytes, of a table of 16-bit numbers: positive codes, negative codes

/// Write the block's table, a thread for each half of a type; returns whether negative codes mirror positive ones.
/// bfloat16 rounds the values to 2^-9.
template <class T>
__device__ __forceinline__ bool fill_float_table(uint4* table, LinearArgs const& args, int thread) {
  if (thread >= kFloatEntries) return true;
  int const type = thread / 2, half = thread % 2;
  uint4 entry = {0, 0, 0, 0};
  uint32_t* words = &entry.x;
  bool mirrored = true;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    __half const value = table_value(args, type, 8 * half + i), other = table_value(args, type, i);
    uint16_t const bits = table_bits<T>(value);
    words[i / 4] |= (bits & 0xffu) << (8 * (i % 4));
    words[2 + i / 4] |= static_cast<uint32_t>(bits >> 8) << (8 * (i % 4));
    mirrored = mirrored && (half == 0 || __heq(value, __hneg(other)) || (__hisnan(value) && __hisnan(other)));
  }
  table[thread] = entry;
  return mirrored;
}

/// Bits of what a code stands for, by the block's table.
__device__ __forceinline__ uint32_t entry_bits(uint4 const* table, int type, int code) {
  auto const* const bytes = reinterpret_cast<unsigned char const*>(table + 2 * type + code / 8) + code % 8;
  return bytes[0] | static_cast<uint32_t>(bytes[8]) << 8;
}

/// 16-bit numbers.
///   kSymmetric: negative codes mirror the positive ones in every type.
///   kBytes: pairs are those of bytes, as look_up_pair has them, else of neighbouring columns.
template <bool kSymmetric, bool kBytes = false>
struct FloatDecoder {
  /// `entry`: of a type in the block's table, in the shared address space.
  __device__ __forceinline__ static void load(FloatRow& row, uint32_t entry) {
    row.positive = magnitudes(load_shared_16(entry));
    if constexpr (!kSymmetric) row.negative = magnitudes(load_shared_16(entry + 16));
  }

  /// first: codes 0, 1 and 2, 3; second: 16, 17 and 18, 19. With kBytes: bytes 0 and 1; 2 and 3. `two_16`: see
  /// upper_half.
  __device__ __forceinline__ static void fragments(uint32_t (&first)[2], uint32_t (&second)[2],
                                                   FloatRow const& row, uint32_t word, uint32_t two_16) {
    uint32_t const magnitude = word & kMagnitudes;
    uint32_t const rest[2] = {upper_half(word, two_16), upper_half(magnitude, two_16)};
    look_up(first[0], kBytes ? first[1] : second[0], row, word, magnitude);
    look_up(kBytes ? second[0] : first[1], second[1], row, rest[0], rest[1]);
  }

 private:
  __device__ __forceinline__ static Magnitudes magnitudes(uint4 entry) {
    return {{entry.x, entry.y}, {entry.z, entry.w}};
  }

  /// Codes 0, 2 of the selector as `even`, 1, 3 as `odd`; with kBytes 0, 1 and 2, 3. `word`: with signs; `magnitude`:
  /// without.
  __device__ __forceinline__ static void look_up(uint32_t& even, uint32_t& odd, FloatRow const& row,
                                                 uint32_t word, uint32_t magnitude) {
    Magnitudes const& p = row.positive;
    uint32_t low = permute_bytes(p.low[0], p.low[1], magnitude);
    uint32_t high = permute_bytes(p.high[0], p.high[1], magnitude);
    // 0xff for a negative code, else 0x80.
    uint32_t const sign = permute_bytes(kTopBits, kTopBits, word);
    if constexpr (kSymmetric) {
      high |= (sign << 1) & kTopBits;
    } else {
      Magnitudes const& n = row.negative;
      uint32_t const negative = (sign & ~kTopBits) | ((sign << 1) & kTopBits);
      low = (low & ~negative) | (permute_bytes(n.low[0], n.low[1], magnitude) & negative);
      high = (high & ~negative) | (permute_bytes(n.high[0], n.high[1], magnitude) & negative);
    }
    even = kBytes ? first_byte(low, high) : even_pair(low, high);
    odd = kBytes ? second_byte(low, high) : odd_pair(low, high);
  }
};

}  // namespace graphopt::mant
