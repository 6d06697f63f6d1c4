// Weights of codebooks that are too large for shared memory: of every codebook, which is sorted by use, the entries
// below a bound are there, and the others come from L2. For generated kernels only.
#pragma once

#include <cstdint>

#include "vq/linear/book.cuh"

namespace graphopt::vq {

/// See BookWeights. kCached: entries of each residual in shared memory, a multiple of 8.
template <class T_, int v, int b, int r, int kCached>
struct PartlyCachedWeights {
  using T = T_;
  using Codes = LaneCodes<v, b, r>;
  static constexpr bool kTiled = false;
  static constexpr bool kLattice = false;
  static constexpr int kEntryBytes = 2 * v;
  static constexpr int kHeader = 16;  // the address of all entries
  static constexpr int kBookBytes = kCached * kEntryBytes;
  static constexpr int kTableBytes = kHeader + r * kBookBytes;
  static constexpr int kSharedBytes = kTableBytes;
  static_assert(kCached % 8 == 0 && kCached <= 1 << b);

  template <int kThreads>
  struct Loader {
    int const thread;

    __device__ __forceinline__ explicit Loader(int thread) : thread(thread) {}

    __device__ __forceinline__ void copy(__half const* books, uint32_t table) const {
      if (thread == 0) asm volatile("st.shared.u64 [%0], %1;" ::"r"(table), "l"(books) : "memory");
      constexpr int kPieces = kBookBytes / 16;
#pragma unroll
      for (int i = 0; i < r; ++i) {
        auto const* source = reinterpret_cast<uint4 const*>(books + (i << b) * v);
        uint32_t const place = table + kHeader + i * kBookBytes;
#pragma unroll 4
        for (int piece = thread; piece < kPieces; piece += kThreads) {
          uint4 const q = __ldg(source + piece);
          store_shared(place + 16 * piece, from_half_pair<T>(q.x), from_half_pair<T>(q.y), from_half_pair<T>(q.z),
                       from_half_pair<T>(q.w));
        }
      }
    }
  };

  class Decoder {
   public:
    __device__ __forceinline__ Decoder(uint32_t table, int, float const*) : table_(table + kHeader) {
      asm volatile("ld.shared.u64 %0, [%1];" : "=l"(books_) : "r"(table));
    }

    /// See BookWeights.
    __device__ __forceinline__ void eight(uint32_t (&out)[4], Codes const& codes, int q) const {
      decode_eight<T, v, r>(out, codes, q, [this](auto& entry, int i, uint32_t code, uint32_t skipped) {
        look_up(entry, i, code, skipped);
      });
    }

   private:
    /// Words of an entry of residual i, from byte `skipped` on. A branch: were both loads predicated, all of a chunk's
    /// would be in flight at once, for which there are no registers.
    template <int kWords>
    __device__ __forceinline__ void look_up(uint32_t (&entry)[kWords], int i, uint32_t code, uint32_t skipped) const {
      uint32_t const byte = code * kEntryBytes + skipped;
      if (code < kCached) {
        load_shared(entry, table_ + i * kBookBytes + byte);
        return;
      }
      char const* const source = books_ + ((int64_t{i} << b) * kEntryBytes + byte);
      if constexpr (kWords == 4) {
        uint4 const q = __ldg(reinterpret_cast<uint4 const*>(source));
        entry[0] = q.x, entry[1] = q.y, entry[2] = q.z, entry[3] = q.w;
      } else if constexpr (kWords == 2) {
        uint2 const q = __ldg(reinterpret_cast<uint2 const*>(source));
        entry[0] = q.x, entry[1] = q.y;
      } else {
        entry[0] = __ldg(reinterpret_cast<uint32_t const*>(source));
      }
#pragma unroll
      for (int w = 0; w < kWords; ++w) entry[w] = from_half_pair<T>(entry[w]);
    }

    uint32_t table_;
    char const* books_;
  };
};

}  // namespace graphopt::vq
