// Pages of a M-ANT cache in shared memory, and what decode multiplies them by.
//
// A word gives a row's type and its scale, which multiplies the products' sums. Of every two rows, the codes of one are
// decoded by byte permutations: four at once, about 2 instructions a code, nearly all for the units of shifts and masks.
// Those of the other are looked up in shared memory, a byte of two codes at a time, at an address that a dot product
// makes: 1 instruction a code, for other units. Neither these units alone nor shared memory alone would keep up with the
// cache.
//
// Which channel or token is which place of an mma is free, as long as both operands agree. Lane (g, t) of a warp,
// g = lane / 4 and t = lane % 4, decodes 8 bytes of a row for four mma: step s takes bytes 2 s and 2 s + 1, which hold
// codes mant_place(t) + 2 s and 16 more in the upper half; mant_place(t) + 2 s + 1 and 16 more.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "attention/mant/codes.cuh"
#include "attention/mant/policy.h"
#include "attention/mant/types.cuh"
#include "common/code_pairs.cuh"
#include "common/ptx.cuh"

namespace graphopt::attention {

/// First code of step 0 that lane t decodes.
__device__ __forceinline__ int mant_place(int t) { return t / 2 * 32 + t % 2 * 8; }

/// Where a page's codes stand in a stage.
template <class Shape>
struct MantPages {
  static constexpr int kGroups = Shape::kGroups;
  static constexpr int kPerLane = Shape::kPerLane;

  /// Where the 32 bytes of a token's group stand in a stage. Eight rows that are read together differ in bits 3, 4 and 5 of
  /// their token; bits 3 and 4 put them into different banks.
  __device__ __forceinline__ static int key_offset(int token, int group) {
    int const b3 = token >> 3 & 1, b4 = token >> 4 & 1;
    return kGroups == 1 ? (token ^ b3 << 1 ^ b4) * 32 : ((token ^ b4) * kGroups + (group ^ b3)) * 32;
  }

  /// Where chunk 32 i + lane of a page's keys goes, 16 bytes: key_offset, with i known to the compiler.
  __device__ __forceinline__ static uint32_t key_chunk(uint32_t i, uint32_t lane) {
    uint32_t const row = kGroups == 1 ? (lane / 2 ^ lane / 16 * 2 ^ i % 2)
                                      : (lane / 4 ^ i / 2 % 2) * 2 + (lane / 2 % 2 ^ i % 2);
    return i * 512 + row * 32 + lane % 2 * 16;
  }

  /// The same of its values: a lane's channels are neighbours, the first of all lanes come first.
  __device__ __forceinline__ static uint32_t value_chunk(uint32_t i, uint32_t lane) {
    uint32_t const channel = lane / 2;
    return channel % kPerLane * Shape::kValuePitch + (i * 16 / kPerLane + channel / kPerLane) * 32 + lane % 2 * 16;
  }
};

/// What decode looks up, as it stands in shared memory: the lower and upper bytes of the eight magnitudes of each type, as
/// fill_mant_tables has them, then the pairs that bytes of two codes stand for. Blocks copy it: to make it takes them 3 us.
struct alignas(16) MantDecodeTables {
  uint8_t magnitudes[kMantTypes][2][kMagnitudes] = {};
  uint32_t pairs[kMantTypes][256] = {};

  __host__ __device__ constexpr MantDecodeTables() {
    for (int type = 0; type < kMantTypes; ++type) {
      uint32_t number[2 * kMagnitudes] = {};
      for (int i = 0; i < kMagnitudes; ++i) {
        number[i] = half_bits(mant_magnitude(type, i));
        number[kMagnitudes + i] = number[i] | 0x8000u;
        magnitudes[type][0][i] = static_cast<uint8_t>(number[i] & 0xffu);
        magnitudes[type][1][i] = static_cast<uint8_t>(number[i] >> 8);
      }
      for (int byte = 0; byte < 256; ++byte) pairs[type][byte] = number[byte % 16] | number[byte / 16] << 16;
    }
  }

 private:
  /// Of a number from 2^-14 to 1 that float16 has, or 0.
  __host__ __device__ static constexpr uint32_t half_bits(float x) {
    if (x == 0.0f) return 0;
    uint32_t exponent = 15;
    for (; x < 1.0f; x *= 2.0f) --exponent;
    return exponent << 10 | static_cast<uint32_t>((x - 1.0f) * 1024.0f);
  }
};
static_assert(sizeof(MantDecodeTables) == kMantTypeBytes + kMantPairBytes);

__device__ const MantDecodeTables kMantDecodeTables = MantDecodeTables();

/// Products of 4-bit rows, 16 at a time, with eight rows of float16.
class MantProducts {
 public:
  /// `tables`: of magnitudes, then of pairs, in the shared address space.
  __device__ __forceinline__ explicit MantProducts(uint32_t tables)
      : tables_(tables), two_16_(static_cast<uint32_t>(opaque(1 << 16))) {}

  /// Start copying the tables, as a group of copies of every thread; to be followed by the wait for it and a barrier.
  __device__ __forceinline__ static void fetch_tables(char* tables) {
    char const* const from = reinterpret_cast<char const*>(&kMantDecodeTables);
    uint32_t const to = shared_address(tables);
    for (uint32_t at = threadIdx.x * 16; at < sizeof(MantDecodeTables); at += blockDim.x * 16) {
      cp_async_16(to + at, from + at, true);
    }
    cp_async_commit();
  }

  /// Add the products of two rows of 64 codes, of which this lane has 8 bytes each, with four steps of the other operand.
  ///   words: of the rows, in group kGroup. kOneWord: both rows' are in the first, one in each group.
  template <int kGroup, bool kOneWord = false>
  __device__ __forceinline__ void add(char const* row, char const* row_8, MantWords const* words,
                                      uint32_t const (*other)[2], float (&sum)[4]) const {
    uint2 const codes[2] = {*reinterpret_cast<uint2 const*>(row), *reinterpret_cast<uint2 const*>(row_8)};
    uint32_t const entry[2] = {words[0].entry<kGroup>(tables_),
                               kOneWord ? words[0].entry<1>(tables_) : words[1].entry<kGroup>(tables_)};
    uint32_t a[4][4];  // of each step
    permute(a, codes[0], entry[0]);
    look_up(a, codes[1], entry[1]);
#pragma unroll
    for (int step = 0; step < 4; ++step) mma_f16(sum, a[step], other[step][0], other[step][1]);
  }

 private:
  /// 8 bytes of the first row to their registers of four mma, by byte permutations.
  ///   entry: of its type in the table of magnitudes.
  __device__ __forceinline__ void permute(uint32_t (&a)[4][4], uint2 const& codes, uint32_t entry) const {
    MantTable const table(entry);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      uint32_t const all = step < 2 ? codes.x : codes.y, bare = all & 0x77777777u;
      bool const upper = step % 2 == 1;
      table.decode_bytes(upper ? upper_half(all, two_16_) : all, upper ? upper_half(bare, two_16_) : bare,
                         a[step][0], a[step][2]);
    }
  }

  /// The same of the second row by the table of pairs, which is behind the one of magnitudes.
  __device__ __forceinline__ void look_up(uint32_t (&a)[4][4], uint2 const& codes, uint32_t entry) const {
    uint32_t const pairs = (entry - tables_) * (kMantPairBytes / kMantTypeBytes) + (tables_ + kMantTypeBytes);
#pragma unroll
    for (int step = 0; step < 4; step += 2) {
      uint32_t const all = step < 2 ? codes.x : codes.y;
      a[step][1] = look_up_pair<0>(pairs, all), a[step][3] = look_up_pair<1>(pairs, all);
      a[step + 1][1] = look_up_pair<2>(pairs, all), a[step + 1][3] = look_up_pair<3>(pairs, all);
    }
  }

  uint32_t tables_;
  uint32_t two_16_;  // see upper_half
};

}  // namespace graphopt::attention
