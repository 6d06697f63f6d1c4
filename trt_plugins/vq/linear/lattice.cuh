// The lattice E8 in registers: a row of a table, eight signs and a shift make eight elements of two T a word.
#pragma once

#include <cstdint>

#include "vq/linear/book.cuh"
#include "vq/linear/e8_table.h"

namespace graphopt::vq {

static __device__ E8Table const kE8Table = make_e8_table();

/// Words of two equal T.
template <class T>
struct LatticeConstants;

template <>
struct LatticeConstants<__half> {
  static constexpr uint32_t kOne = 0x3c003c00u;
  static constexpr uint32_t kMinusQuarter = 0xb400b400u;
};

template <>
struct LatticeConstants<__nv_bfloat16> {
  static constexpr uint32_t kOne = 0x3f803f80u;
  static constexpr uint32_t kMinusQuarter = 0xbe80be80u;
};

/// Signs of the eight coordinates of a point, the eighth by parity. `byte`: the upper half of a code.
__device__ __forceinline__ uint32_t e8_signs(uint32_t byte) {
  uint32_t const seven = byte & 0x7f;
  return seven | (__popc(seven) & 1) << 7;
}

/// Byte `i` of a word, times 256.
__device__ __forceinline__ uint32_t byte_of_address(uint32_t word, int i) {
  return permute_bytes(word, 0, 0x4404u | static_cast<uint32_t>(i) << 4);
}

/// The shifts of both codes of a word, in its halves: 1/4 if a code's top bit is 1, -1/4 if it is 0.
template <class T>
__device__ __forceinline__ uint32_t e8_shifts(uint32_t word) {
  return (word & 0x80008000u) ^ LatticeConstants<T>::kMinusQuarter;
}

/// Half `half` of a word, twice. An operand of an instruction for pairs takes it without an instruction.
__device__ __forceinline__ uint32_t twice(uint32_t word, int half) {
  uint32_t pair;
  if (half == 0) {
    asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\nmov.b32 %0, {low, low};\n}" : "=r"(pair) : "r"(word));
  } else {
    asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\nmov.b32 %0, {high, high};\n}" : "=r"(pair) : "r"(word));
  }
  return pair;
}

/// Weights of one or two codes of E8 for eight columns, see BookWeights. The table has, for each byte, the row of that
/// number in copies of 8 T, and the signs of that number in a word for each lane: working them out costs more.
///   kPairs: of two columns, see PairDecoder, as two T of 1 or -1; else of eight, bits 2 i and 2 i + 15 for coordinates
///     2 i and 2 i + 1.
template <class T_, int r, bool kPairs_>
struct LatticeWeights {
  using T = T_;
  using Codes = LaneCodes<8, 16, r>;
  static_assert(r == 1 || r == 2);
  static constexpr bool kLattice = true;
  static constexpr bool kTiled = false;
  static constexpr bool kPairs = kPairs_;
  static constexpr int kCopies = 8;
  static constexpr int kPitch = 256;
  static constexpr int kSigns = 128;  // where they begin
  static constexpr int kTableBytes = kE8Rows * kPitch;
  static constexpr int kSharedBytes = kTableBytes;
  static constexpr int kAlignment = kPairs ? 64 * 1024 : 128;  // of pairs, a byte of a code is one of an address

  template <int kThreads>
  struct Loader {
    int const thread;

    __device__ __forceinline__ explicit Loader(int thread) : thread(thread) {}

    __device__ __forceinline__ void copy(__half const*, uint32_t table) const {
      constexpr int kShare = kThreads / kE8Rows;  // threads that make a byte's
      static_assert(kThreads % kE8Rows == 0 && kShare <= kCopies);
      uint32_t const byte = thread / kShare, packed = __ldg(&kE8Table.row[byte]);
      uint32_t const spread =
          e8_signs(byte) * 0x8001u;  // bit 2 i + 1 to bit 16 + 2 i: one shift brings both to a pair's signs
      uint32_t row[4], sign[4];
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        float const low = static_cast<float>((packed >> (4 * w)) & 3) + 0.5f;
        float const high = static_cast<float>((packed >> (4 * w + 2)) & 3) + 0.5f;
        row[w] = round_pair<T>(low, w == 3 && (packed >> 16) != 0 ? -high : high);
        sign[w] = kPairs ? signs_of_pair(spread, w) | LatticeConstants<T>::kOne : spread;
      }
      uint32_t const place = table + byte * kPitch;
#pragma unroll
      for (int p = 0; p < kCopies; p += kShare) {
        int const copy = (p + thread) % kCopies;
        store_shared(place + 16 * copy, row[0], row[1], row[2], row[3]);
        store_shared(place + kSigns + 16 * copy, sign[0], sign[1], sign[2], sign[3]);
      }
    }
  };

  __device__ __forceinline__ static uint32_t signs_of_pair(uint32_t spread, int pair) {
    return (spread << (15 - 2 * pair)) & 0x80008000u;
  }

  /// What the second code of a word is multiplied by, as two T.
  __device__ __forceinline__ static uint32_t ratio_of(float const* ratios) {
    float const ratio = __ldg(ratios + 1) / __ldg(ratios);
    return round_pair<T>(ratio, ratio);
  }

  class Decoder {
   public:
    __device__ __forceinline__ Decoder(uint32_t table, int lane, float const* ratios)
        : table_(table + lane % kCopies * 16), signs_(table + kSigns + lane * 4) {
      static_assert(!kPairs);
      if constexpr (r == 2) ratio_ = ratio_of(ratios);
    }

    /// See BookWeights; in units of ratios[0].
    __device__ __forceinline__ void eight(uint32_t (&out)[4], Codes const& codes, int q) const {
      eight<true>(out, codes, q);
    }

    /// The same without shifts where not kShifted.
    template <bool kShifted>
    __device__ __forceinline__ void eight(uint32_t (&out)[4], Codes const& codes, int q) const {
      uint32_t const word = codes.word[r == 2 ? q : q / 2], shifts = e8_shifts<T>(word);
      if constexpr (r == 1) {
        point<kShifted>(out, word, shifts, q % 2);
      } else {
        uint32_t second[4];
        point<kShifted>(out, word, shifts, 0);
        point<kShifted>(second, word, shifts, 1);
#pragma unroll
        for (int w = 0; w < 4; ++w) out[w] = fma_pair<T>(second[w], ratio_, out[w]);
      }
    }

    /// Add +-x for each code of vector q, by its shift. r == 2.
    __device__ __forceinline__ static void add_shifts(float (&sums)[2], Codes const& codes, int q, float x) {
      uint32_t const word = ~codes.word[q], bits = __float_as_uint(x);
      sums[0] += __uint_as_float(bits ^ (word << 16 & 0x80000000u));
      sums[1] += __uint_as_float(bits ^ (word & 0x80000000u));
    }

    /// What sums of add_shifts add to a product, in units of ratios[0].
    __device__ __forceinline__ static float shift_product(float (&sums)[2], float const* ratios) {
      constexpr float kShift = 0.25f;
      return kShift * fmaf(__ldg(ratios + 1) / __ldg(ratios), sums[1], sums[0]);
    }

   private:
    /// The point of the code in half `half` of a word.
    template <bool kShifted>
    __device__ __forceinline__ void point(uint32_t (&out)[4], uint32_t word, uint32_t shifts, int half) const {
      uint32_t row[4], spread[1];
      load_shared(row, table_ + byte_of_address(word, 2 * half));
      load_shared(spread, signs_ + byte_of_address(word, 2 * half + 1));
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        out[w] = row[w] ^ signs_of_pair(spread[0], w);
        if constexpr (kShifted) out[w] = add_pair<T>(out[w], twice(shifts, half));
      }
    }

    uint32_t table_;
    uint32_t signs_;
    uint32_t ratio_ = 0;
  };

  /// See BookWeights.
  template <int kWords>
  class PairDecoder {
   public:
    /// `ratio`: see ratio_of.
    __device__ __forceinline__ PairDecoder(uint32_t table, int lane, uint32_t ratio)
        : table_(table + lane * 4), ratio_(ratio) {
      static_assert(kPairs && kPitch == 256);
    }

    __device__ __forceinline__ void align(uint32_t (&)[kWords]) const {}

    __device__ __forceinline__ uint32_t pair(uint32_t const (&codes)[kWords], int chunk) const {
      uint32_t const word = codes[r == 2 ? chunk : chunk / 2], shifts = e8_shifts<T>(word);
      if constexpr (r == 1) return point(word, shifts, chunk % 2);
      return fma_pair<T>(point(word, shifts, 1), ratio_, point(word, shifts, 0));
    }

   private:
    __device__ __forceinline__ uint32_t point(uint32_t word, uint32_t shifts, int half) const {
      uint32_t row[1], signs[1];
      load_shared(row, address(word, 2 * half));
      load_shared(signs, address(word, 2 * half + 1) + kSigns);
      return fma_pair<T>(row[0], signs[0], twice(shifts, half));
    }

    /// Where byte `i` of a word leads to: it is the second byte of the address.
    __device__ __forceinline__ uint32_t address(uint32_t word, int i) const {
      return permute_bytes(word, table_, 0x7604u | static_cast<uint32_t>(i) << 4);
    }

    uint32_t table_, ratio_;
  };
};

}  // namespace graphopt::vq
