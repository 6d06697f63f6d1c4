// Weights of the Hopper kernel whose lanes hold whole vectors of eight columns, and the order of X that this asks for.
//
// Of A a lane has columns 2 t, 2 t + 1, 2 t + 8 and 2 t + 9 of every 16, t = lane % 4. Where they are looked up as they
// come, four lanes look up the same code, each its word of the entry. But the order of K is free as long as X has the
// same: here they are the eight columns of one vector, in two steps of 16. A lane then looks up its own codes, 16 bytes
// at a time, and the signs of a point of E8 once instead of four times; it also keeps a quarter as many codes.
//
// X is brought as it is. Three warps that have nothing else to do put the words of stages into that order, each those of
// stages of its own: what a stage waits for, one after the other, takes longer than its instructions.
#pragma once

#include <cstdint>

#include "vq/linear/lattice.cuh"
#include "vq/linear/sm90_tile.h"

namespace graphopt::vq {

/// Two codes of E8 for eight columns, which a lane decodes alone.
template <class T_>
struct LatticeVectors : LatticeWeights<T_, 2, /*kPairs=*/false> {
  using Base = LatticeWeights<T_, 2, false>;
  using T = T_;
  static constexpr int kAlignment = 64 * 1024;  // a byte of a code is one of an address

  class VectorDecoder {
   public:
    /// `ratio`: see ratio_of.
    __device__ __forceinline__ VectorDecoder(uint32_t table, int lane, uint32_t ratio)
        : rows_(table + lane % Base::kCopies * 16), signs_(table + Base::kSigns + lane * 4), ratio_(ratio) {
      static_assert(Base::kPitch == 256);
    }

    /// The eight columns of a word of two codes, in units of ratios[0].
    __device__ __forceinline__ void eight(uint32_t (&out)[4], uint32_t word) const {
      uint32_t const shifts = e8_shifts<T>(word);
      uint32_t second[4];
      point(out, word, shifts, 0);
      point(second, word, shifts, 1);
#pragma unroll
      for (int w = 0; w < 4; ++w) out[w] = fma_pair<T>(second[w], ratio_, out[w]);
    }

    /// A of half a stage: a vector of this lane's first row of W, and of its second.
    __device__ __forceinline__ void half(uint32_t (&a)[8], uint32_t first, uint32_t second) const {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        uint32_t out[4];
        eight(out, h == 0 ? first : second);
#pragma unroll
        for (int w = 0; w < 4; ++w) a[2 * w + h] = out[w];
      }
    }

   private:
    /// The point of the code in half `half` of a word.
    __device__ __forceinline__ void point(uint32_t (&out)[4], uint32_t word, uint32_t shifts, int half) const {
      uint32_t row[4], spread[1];
      load_shared(row, address(word, rows_, 2 * half));
      load_shared(spread, address(word, signs_, 2 * half + 1));
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        out[w] = add_pair<T>(row[w] ^ Base::signs_of_pair(spread[0], w), twice(shifts, half));
      }
    }

    /// Where byte `i` of a word leads to: it is the second byte of the address.
    __device__ __forceinline__ static uint32_t address(uint32_t word, uint32_t base, int i) {
      return permute_bytes(word, base, 0x7604u | static_cast<uint32_t>(i) << 4);
    }

    uint32_t rows_, signs_, ratio_;
  };
};

template <class T>
constexpr bool kHasVectors<LatticeVectors<T>> = true;

/// Where the words of vector `vector` of a row of a stage go: word w into chunk vector_chunk(vector, w), as its word
/// vector / 2. A stage has two vectors of each of four lanes: 2 t and 2 t + 1, which are halves 0 and 1 of the stage.
__host__ __device__ constexpr int vector_chunk(int vector, int word) { return 4 * (vector % 2) + word; }

/// Rows of X that a warp reads before it writes them.
constexpr int kVectorRows = 16;

/// A warp that puts the words of a stage, kParts times kVectorRows rows, into the order of vectors. Eight lanes take a
/// row of 128 bytes; reads and writes meet all banks alike.
template <int kParts>
class VectorRows {
  static constexpr int kSteps = kVectorRows / 4;  // of four rows

 public:
  __device__ __forceinline__ explicit VectorRows(int lane) {
    int const row = lane / 8, vector = lane % 8;
    from_ = row * 128 + (vector ^ row) * 16;
    to_ = row * 128 + (vector_chunk(vector, 0) ^ row) * 16 + vector / 2 * 4;
  }

  __device__ __forceinline__ void order(uint32_t stage) const {
    uint32_t words[2][kSteps][4];
    read(words[0], stage, 0);
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      __syncwarp();  // rows have been read before they are written
      if (part + 1 < kParts) read(words[(part + 1) % 2], stage, part + 1);
      write(words[part % 2], stage, part);
    }
  }

 private:
  __device__ __forceinline__ void read(uint32_t (&words)[kSteps][4], uint32_t stage, int part) const {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      load_shared(words[i], stage + (from_ ^ i % 2 * 64) + (part * kSteps + i) * 512);
    }
  }

  __device__ __forceinline__ void write(uint32_t const (&words)[kSteps][4], uint32_t stage, int part) const {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        store_word(stage + (to_ ^ (i % 2 * 64 + w * 16)) + (part * kSteps + i) * 512, words[i][w]);
      }
    }
  }

  __device__ __forceinline__ static void store_word(uint32_t address, uint32_t word) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(word) : "memory");
  }

  // A lane's vector in the first four rows, and its first word in order: other words differ in bits 4 and 5, the second
  // four of eight rows in bit 6.
  uint32_t from_, to_;
};

}  // namespace graphopt::vq
