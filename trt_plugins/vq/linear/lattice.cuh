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
  static constexpr uint32_t kQuarter = 0x34003400u;
};

template <>
struct LatticeConstants<__nv_bfloat16> {
  static constexpr uint32_t kQuarter = 0x3e803e80u;
};

/// Signs of the points of two codes, the halves of a word: bits 0 to 7 and 16 to 23, the eighth by parity.
__device__ __forceinline__ uint32_t e8_signs(uint32_t codes) {
  uint32_t const seven = (codes >> 8) & 0x007f007fu;
  uint32_t parity = seven ^ (seven >> 4);
  parity ^= parity >> 2;
  parity ^= parity >> 1;
  return ((parity & 0x00010001u) << 7) | seven;
}

/// Weights of one or two codes of E8 for eight columns, see BookWeights. The table has 256 rows of 8 T.
template <class T_, int r, int kCopies_>
struct LatticeWeights {
  using T = T_;
  using Codes = LaneCodes<8, 16, r>;
  static_assert(r == 1 || r == 2);
  static constexpr bool kLattice = true;
  static constexpr bool kTiled = false;
  static constexpr int kCopies = kCopies_;
  static constexpr int kPitch = 16 * kCopies;
  static constexpr int kTableBytes = kE8Rows * kPitch;
  static constexpr int kSharedBytes = kTableBytes;
  static_assert(kPitch <= 128);

  template <int kThreads>
  struct Loader {
    int const thread;

    __device__ __forceinline__ explicit Loader(int thread) : thread(thread) {}

    __device__ __forceinline__ void copy(__half const*, uint32_t table) const {
      constexpr int kShare = kThreads / kE8Rows;  // threads that make a row
      static_assert(kThreads % kE8Rows == 0 && kShare <= kCopies);
      int const row = thread / kShare;
      uint32_t const packed = __ldg(&kE8Table.row[row]);
      uint32_t words[4];
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        float const low = static_cast<float>((packed >> (4 * w)) & 3) + 0.5f;
        float const high = static_cast<float>((packed >> (4 * w + 2)) & 3) + 0.5f;
        words[w] = round_pair<T>(low, w == 3 && (packed >> 16) != 0 ? -high : high);
      }
#pragma unroll
      for (int p = 0; p < kCopies; p += kShare) {
        int const copy = (p + thread) % kCopies;
        store_shared(table + row * kPitch + 16 * copy, words[0], words[1], words[2], words[3]);
      }
    }
  };

  class Decoder {
   public:
    __device__ __forceinline__ Decoder(uint32_t table, int lane, float const* ratios)
        : table_(table + lane % kCopies * 16) {
      if constexpr (r == 2) {
        float const ratio = __ldg(ratios + 1) / __ldg(ratios);
        ratio_ = round_pair<T>(ratio, ratio);
      }
    }

    /// See BookWeights; in units of ratios[0].
    __device__ __forceinline__ void eight(uint32_t (&out)[4], Codes const& codes, int q) const {
      eight<true>(out, codes, q);
    }

    /// The same without shifts where not kShifted.
    template <bool kShifted>
    __device__ __forceinline__ void eight(uint32_t (&out)[4], Codes const& codes, int q) const {
      uint32_t const word = codes.word[r == 2 ? q : q / 2];
      uint32_t const signs = e8_signs(word);
      if constexpr (r == 1) {
        point<kShifted>(out, q % 2 == 0 ? word : word >> 16, q % 2 == 0 ? signs : signs >> 16);
      } else {
        uint32_t second[4];
        point<kShifted>(out, word, signs);
        point<kShifted>(second, word >> 16, signs >> 16);
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
    /// The point of the code in the lower half of `code`, whose signs are the lower byte of `signs`.
    template <bool kShifted>
    __device__ __forceinline__ void point(uint32_t (&out)[4], uint32_t code, uint32_t signs) const {
      // Bit 2 i to bit 2 i and bit 2 i + 1 to bit 16 + 2 i: one shift then brings both to the signs of pair i.
      uint32_t const spread = (signs & 0xffu) * 0x8001u;
      uint32_t const shift = (~code & 0x8000u) * 0x10001u + LatticeConstants<T>::kQuarter;
      uint32_t row[4];
      load_shared(row, table_ + (code & 0xffu) * kPitch);
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        out[w] = row[w] ^ ((spread << (15 - 2 * w)) & 0x80008000u);
        if constexpr (kShifted) out[w] = add_pair<T>(out[w], shift);
      }
    }

    uint32_t table_;
    uint32_t ratio_ = 0;
  };

  /// See BookWeights.
  template <int kWords>
  class PairDecoder {
   public:
    __device__ __forceinline__ PairDecoder(uint32_t table, int lane, float const* ratios)
        : table_(table + lane / 4 % kCopies * 16 + lane % 4 * 4), shift_(15 - lane % 4 * 2) {
      if constexpr (r == 2) {
        float const ratio = __ldg(ratios + 1) / __ldg(ratios);
        ratio_ = round_pair<T>(ratio, ratio);
      }
    }

    __device__ __forceinline__ void align(uint32_t (&)[kWords]) const {}

    __device__ __forceinline__ uint32_t pair(uint32_t const (&codes)[kWords], int chunk) const {
      uint32_t const word = codes[r == 2 ? chunk : chunk / 2];
      uint32_t const signs = e8_signs(word);
      if constexpr (r == 1) return point(chunk % 2 == 0 ? word : word >> 16, chunk % 2 == 0 ? signs : signs >> 16);
      return fma_pair<T>(point(word >> 16, signs >> 16), ratio_, point(word, signs));
    }

   private:
    __device__ __forceinline__ uint32_t point(uint32_t code, uint32_t signs) const {
      uint32_t const spread = (signs & 0xffu) * 0x8001u;
      uint32_t const shift = (~code & 0x8000u) * 0x10001u + LatticeConstants<T>::kQuarter;
      uint32_t row[1];
      load_shared(row, table_ + (code & 0xffu) * kPitch);
      return add_pair<T>(row[0] ^ ((spread << shift_) & 0x80008000u), shift);
    }

    uint32_t table_;
    int shift_;
    uint32_t ratio_ = 0;
  };
};

}  // namespace graphopt::vq
