// The codebook cache: entries in shared memory, copied so often that lanes that look up at once use different banks.
//
// A shared-memory access of 32 lanes takes entries of 128 bytes at a time. With one copy of a codebook, the entries
// that random codes name lie in the same banks two to three times over. With copies side by side, 128 bytes for all
// copies of an entry, lane l reads copy l % copies and never waits for another lane.
#pragma once

#include <cstdint>

#include "common/vec.cuh"
#include "vq/linear/codes.cuh"

namespace graphopt::vq {

/// Two elements of T as a word.
template <class T>
__device__ __forceinline__ uint32_t from_half_pair(uint32_t word) {
  if constexpr (std::is_same_v<T, __half>) {
    return word;
  } else {
    __half2 pair;
    memcpy(&pair, &word, sizeof(pair));
    float2 const value = __half22float2(pair);
    return round_pair<T>(value.x, value.y);
  }
}

template <class T>
__device__ __forceinline__ uint32_t fma_pair(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t sum;
  if constexpr (std::is_same_v<T, __half>) {
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
  } else {
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
  }
  return sum;
}

/// kWords words from shared memory. Volatile: barriers order it.
template <int kWords>
__device__ __forceinline__ void load_shared(uint32_t (&w)[kWords], uint32_t address) {
  static_assert(kWords == 1 || kWords == 2 || kWords == 4);
  if constexpr (kWords == 4) {
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
                 : "r"(address));
  } else if constexpr (kWords == 2) {
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(w[0]), "=r"(w[1]) : "r"(address));
  } else {
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(w[0]) : "r"(address));
  }
}

/// The same where `wanted`; else w is left undefined.
__device__ __forceinline__ void load_shared_if(bool wanted, uint32_t (&w)[4], uint32_t address) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %5, 0;\n@p ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];\n}"
               : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
               : "r"(address), "r"(static_cast<uint32_t>(wanted)));
}

__device__ __forceinline__ void store_shared(uint32_t address, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

/// Pairs of T of columns 8 q to 8 q + 7 of what `codes` holds, of VQ<v, b, r>. look_up(words, i, code, skipped) gives
/// words of an entry of residual i, from byte `skipped` on.
template <class T, int v, int r, class Codes, class LookUp>
__device__ __forceinline__ void decode_eight(uint32_t (&out)[4], Codes const& codes, int q, LookUp const& look_up) {
  constexpr int kVectors = v >= 8 ? 1 : 8 / v;  // that the eight columns touch
  constexpr int kWords = v >= 8 ? 4 : v / 2;
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    int const vector = v >= 8 ? 8 * q / v : q * kVectors + j;
    uint32_t sum[kWords];
#pragma unroll
    for (int i = 0; i < r; ++i) {
      uint32_t const skipped = v == 16 ? 16 * (q % 2) : 0;
      uint32_t entry[kWords];
      look_up(entry, i, codes.code(vector * r + i), skipped);
#pragma unroll
      for (int w = 0; w < kWords; ++w) sum[w] = i == 0 ? entry[w] : add_pair<T>(sum[w], entry[w]);
    }
#pragma unroll
    for (int w = 0; w < kWords; ++w) out[j * kWords + w] = sum[w];
  }
}

/// Weights of trained codebooks VQ<v, b, r>.
///   kTiled: codebooks change along K, at multiples of a chunk; two buffers take turns.
///   kCopies: of every entry, a power of two, at most 128 bytes of them.
///   kByByte: an entry of one residual, or of one buffer, lies beside that of the other, 256 bytes for both, so that a
///     code is a byte of an address.
template <class T_, int v, int b, int r, bool kTiled_, int kCopies_, bool kByByte = false>
struct BookWeights {
  using T = T_;
  using Codes = LaneCodes<v, b, r>;
  static constexpr bool kTiled = kTiled_;
  static constexpr bool kLattice = false;
  static constexpr int kCopies = kCopies_;
  static constexpr int kEntryBytes = 2 * v;
  static constexpr int kCopiesBytes = kEntryBytes * kCopies;
  static constexpr int kPitch = kByByte ? 256 : kCopiesBytes;                  // bytes from an entry to the next
  static constexpr int kResidualBytes = kByByte ? kCopiesBytes : kPitch << b;  // from a residual to the next
  static constexpr int kEntries = r << b;                                      // of all residuals
  static constexpr int kTableBytes = kByByte ? kCopiesBytes : r * kResidualBytes;  // from a buffer to the other
  static constexpr int kSharedBytes = kByByte ? kPitch << b : kTableBytes * (kTiled ? 2 : 1);
  static constexpr int kAlignment = kByByte ? 64 * 1024 : 128;
  static_assert(!kByByte || (b == 8 && 2 * kCopiesBytes == kPitch && r == (kTiled ? 1 : 2)));
  static constexpr int kEntryWords = kEntryBytes / 4;
  static constexpr int kPieces = kCopiesBytes / 16;  // vectors of 16 bytes that hold all copies of an entry
  static_assert(kCopiesBytes <= 128 && kCopiesBytes >= 16);

  /// The part of codebooks that a thread brings: one entry of every kThreads / (threads for an entry).
  template <int kThreads>
  struct Loader {
    static constexpr int kRoom = kThreads > kEntries ? kThreads / kEntries : 1;
    static constexpr int kShare = kRoom < kPieces ? kRoom : kPieces;  // threads that copy an entry
    static constexpr int kStep = kThreads / kShare;
    static constexpr int kMine = (kEntries + kStep - 1) / kStep;
    uint32_t entry[kTiled ? kMine : 1][kEntryWords];

    int const thread;  // of kThreads

    __device__ __forceinline__ explicit Loader(int thread) : thread(thread) {}

    /// Start bringing the codebooks at `books`.
    __device__ __forceinline__ void load(__half const* books) {
      static_assert(kTiled);
#pragma unroll
      for (int i = 0; i < kMine; ++i) read(books, number(i), entry[i]);
    }

    /// Put what load has brought at `table`.
    __device__ __forceinline__ void store(uint32_t table) const {
#pragma unroll
      for (int i = 0; i < kMine; ++i) write(table, number(i), entry[i]);
    }

    /// Both, where there is nothing to do between them.
    __device__ __forceinline__ void copy(__half const* books, uint32_t table) const {
#pragma unroll 4
      for (int i = 0; i < kMine; ++i) {
        uint32_t words[kEntryWords];
        read(books, number(i), words);
        write(table, number(i), words);
      }
    }

   private:
    __device__ __forceinline__ int number(int i) const { return i * kStep + thread / kShare; }

    __device__ __forceinline__ static void read(__half const* books, int number, uint32_t (&words)[kEntryWords]) {
      if (number >= kEntries) return;
      auto const* source = reinterpret_cast<uint32_t const*>(books) + number * kEntryWords;
      if constexpr (kEntryWords >= 4) {
#pragma unroll
        for (int w = 0; w < kEntryWords; w += 4) {
          uint4 const q = __ldg(reinterpret_cast<uint4 const*>(source + w));
          words[w] = q.x, words[w + 1] = q.y, words[w + 2] = q.z, words[w + 3] = q.w;
        }
      } else if constexpr (kEntryWords == 2) {
        uint2 const q = __ldg(reinterpret_cast<uint2 const*>(source));
        words[0] = q.x, words[1] = q.y;
      } else {
        words[0] = __ldg(source);
      }
    }

    /// This thread's share of the copies of an entry; threads start at different banks.
    __device__ __forceinline__ void write(uint32_t table, int number, uint32_t const (&source)[kEntryWords]) const {
      if (number >= kEntries) return;
      uint32_t words[kEntryWords];
#pragma unroll
      for (int w = 0; w < kEntryWords; ++w) words[w] = from_half_pair<T>(source[w]);
      uint32_t const place = table + static_cast<uint32_t>(number % (1 << b)) * kPitch +
                             static_cast<uint32_t>(number >> b) * kResidualBytes;
#pragma unroll
      for (int p = 0; p < kPieces; p += kShare) {
        int const piece = (p + thread) % kPieces;
        if constexpr (kEntryWords == 8) {
          bool const second = piece % 2 != 0;
          store_shared(place + 16 * piece, second ? words[4] : words[0], second ? words[5] : words[1],
                       second ? words[6] : words[2], second ? words[7] : words[3]);
        } else {
          store_shared(place + 16 * piece, words[0], words[1 % kEntryWords], words[2 % kEntryWords],
                       words[3 % kEntryWords]);
        }
      }
    }
  };

  /// Looks codes up in one lane's copy of a table.
  class Decoder {
   public:
    __device__ __forceinline__ Decoder(uint32_t table, int lane, float const*)
        : table_(table + lane % kCopies * kEntryBytes) {}

    /// Pairs of T of columns 8 q to 8 q + 7 of what `codes` holds.
    __device__ __forceinline__ void eight(uint32_t (&out)[4], Codes const& codes, int q) const {
      decode_eight<T, v, r>(out, codes, q, [this](auto& entry, int i, uint32_t code, uint32_t skipped) {
        uint32_t const offset = static_cast<uint32_t>(i * kResidualBytes) + skipped;
        load_shared(entry, table_ + code * kPitch + offset);
      });
    }

   private:
    uint32_t table_;
  };

  /// Looks up what lane t = lane % 4 of an mma operand wants of every eight columns: its columns 2 t and 2 t + 1.
  ///   kWords: of codes, of the columns that it is given.
  template <int kWords>
  class PairDecoder {
    static constexpr int kSharing = v >= 8 ? 4 : v / 2;  // lanes that look up one entry
    static constexpr int kSkipped =
        v >= 8 ? 0 : r * b;  // bits from the entry of one lane to that of the next that has another
    static_assert(kSkipped * (4 / kSharing - 1) < 32, "the first code of every lane begins in the first word");

   public:
    __device__ __forceinline__ PairDecoder(uint32_t table, int lane, float const*)
        : table_(table + lane / kSharing % kCopies * kEntryBytes + lane % kSharing * 4),
          skipped_(lane % 4 / kSharing * kSkipped) {}

    /// Drop the bits before this lane's first code.
    __device__ __forceinline__ void align(uint32_t (&codes)[kWords]) const {
      if constexpr (kSkipped > 0) {
#pragma unroll
        for (int i = 0; i < kWords; ++i)
          codes[i] = __funnelshift_r(codes[i], i + 1 < kWords ? codes[i + 1] : 0, skipped_);
      }
    }

    /// The pair of T of the lane's columns of eight number `chunk`, of aligned codes.
    __device__ __forceinline__ uint32_t pair(uint32_t const (&codes)[kWords], int chunk) const {
      int const vector = v >= 8 ? 8 * chunk / v : chunk * (8 / v);
      uint32_t const half = v == 16 ? 16 * (chunk % 2) : 0;
      uint32_t sum[1];
#pragma unroll
      for (int i = 0; i < r; ++i) {
        uint32_t entry[1];
        load_shared(entry, address(codes, vector * r + i) + static_cast<uint32_t>(i * kResidualBytes) + half);
        sum[0] = i == 0 ? entry[0] : add_pair<T>(sum[0], entry[0]);
      }
      return sum[0];
    }

   private:
    /// Where code number i leads to.
    __device__ __forceinline__ uint32_t address(uint32_t const (&codes)[kWords], int i) const {
      if constexpr (kByByte) {
        return permute_bytes(codes[i / 4], table_, 0x7604u | static_cast<uint32_t>(i % 4) << 4);
      } else {
        return table_ + code_of<b>(codes, i) * kPitch;
      }
    }

    uint32_t table_;
    uint32_t skipped_;
  };
};

}  // namespace graphopt::vq
