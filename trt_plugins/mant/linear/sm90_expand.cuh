// Kernel that writes weights out as the Hopper matrix product takes them, a slab of rows of W at a time.
//
// A block has 32 rows, which share 16 bytes of types, and 1024 bytes of each. Whatever is constant is read before the
// kernel before has ended: codes go to registers, scales and types of each 64 columns become entries in shared memory.
// Then lanes decode 16 bytes each, so that a warp writes 512 bytes that follow each other. Two lanes read the same codes:
// half of each word's nibbles are theirs.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/ptx.cuh"
#include "common/vec.cuh"
#include "mant/linear/sm90_folded_codes.cuh"

namespace graphopt::mant {

constexpr int kExpandRows = 32;
constexpr int kExpandThreads = 256;
constexpr int kExpandRowBytes = 1024;  // of numbers
constexpr int kExpandVectorBytes = 16;
constexpr int kExpandSegment = 64;  // columns of an entry; they lie in one group
constexpr int kExpandPitch = kExpandRows + 1;  // entries from a segment to the next, for other banks

/// Nibbles `half` (low ones, high ones) of four bytes as low nibbles, and those of four further bytes as high ones.
__device__ __forceinline__ uint32_t nibbles_of(uint32_t bytes, uint32_t further, int half) {
  constexpr uint32_t kLow = 0x0f0f0f0fu;
  return ((bytes >> (4 * half)) & kLow) | ((further << (4 - 4 * half)) & ~kLow);
}

/// Numbers of 16 bits: FoldedFloat's.
template <class T>
struct ExpandFloat {
  using X = T;
  using Folded = FoldedFloat<T>;
  using Codes = uint2;  // of a vector, and as many of other columns
  static constexpr bool kPrepared = false;  // whether entries are what a kernel before has written
  static constexpr int kBlocks = 5;  // of a multiprocessor, for which registers are kept free

  struct Entry {
    uint32_t scale;  // twice
    int type;
  };

  __device__ __forceinline__ static Entry entry(LinearArgs const& args, FoldedTables const&, int group, int64_t n,
                                                bool) {
    float const scale = __half2float(args.scale[int64_t{group} * args.n + n]);
    int const types = args.types[int64_t{group} * args.type_bytes + n / 32 * 16 + n % 16];
    return {round_pair<T>(scale, scale), types >> (n / 16 % 2 * 4) & 15};
  }

  /// `table`: the block's, in the shared address space.
  template <bool kSymmetric>
  __device__ __forceinline__ static uint4 numbers(Codes codes, int half, Entry const& of, uint32_t table) {
    FloatRow row;
    FloatDecoder<kSymmetric>::load(row, table + 32 * of.type);
    uint32_t first[2], second[2];
    FloatDecoder<kSymmetric>::fragments(first, second, row, nibbles_of(codes.x, codes.y, half),
                                        static_cast<uint32_t>(opaque(1 << 16)));
    return {Folded::product(first[0], of.scale), Folded::product(first[1], of.scale),
            Folded::product(second[0], of.scale), Folded::product(second[1], of.scale)};
  }
};

/// int8 of a row's scale: FoldedBytes'.
struct ExpandBytes {
  using X = int8_t;
  using Folded = FoldedBytes;
  using Codes = uint4;
  static constexpr bool kPrepared = true;
  static constexpr int kBlocks = 4;

  struct Entry {
    uint2 positive, negative;
  };

  __device__ __forceinline__ static Entry entry(LinearArgs const& args, FoldedTables const& tables, int group,
                                                int64_t n, bool symmetric) {
    int64_t const at = int64_t{group} * args.n + n;
    return {tables.positive[at], symmetric ? uint2{0, 0} : tables.negative[at]};
  }

  template <bool kSymmetric>
  __device__ __forceinline__ static uint4 numbers(Codes codes, int half, Entry const& of, uint32_t) {
    uint4 v;
    Folded::numbers<kSymmetric>(v.x, v.y, nibbles_of(codes.x, codes.y, half), of.positive, of.negative);
    Folded::numbers<kSymmetric>(v.z, v.w, nibbles_of(codes.z, codes.w, half), of.positive, of.negative);
    return v;
  }
};

/// A warp's part of a block: every kWarps-th row of its tile.
template <class Decoder>
class ExpandWarp {
  using Codes = typename Decoder::Codes;
  using Entry = typename Decoder::Entry;
  static constexpr int kWarps = kExpandThreads / 32;
  static constexpr int kRows = kExpandRows / kWarps;
  static constexpr int kVectors = kExpandRowBytes / kExpandVectorBytes / 32;  // of a row, for each lane
  static constexpr int kVectorColumns = kExpandVectorBytes / int{sizeof(typename Decoder::X)};

 public:
  static constexpr int kColumns = kExpandRowBytes / int{sizeof(typename Decoder::X)};
  static constexpr int kSegments = kColumns / kExpandSegment;

  /// first: the slab's first row of W; rows: of the slab. row, column: the block's first in the slab.
  __device__ __forceinline__ ExpandWarp(LinearArgs const& args, int64_t first, int rows, int row, int column)
      : args_(args), first_(first), rows_(rows), row_(row + static_cast<int>(threadIdx.x) / 32), column_(column) {}

  __device__ __forceinline__ void load() {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      int const row = row_ + r * kWarps;
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        int const column = column_ + column_of(v);
        if (row >= rows_ || column >= args_.k) continue;
        int const byte = column / 32 * 16 + column % 16;
        codes_[r][v] = __ldg(reinterpret_cast<Codes const*>(args_.codes + (first_ + row) * args_.row_bytes + byte));
      }
    }
  }

  /// entries: [kSegments][kExpandPitch]. slab: [rows, K].
  template <bool kSymmetric>
  __device__ __forceinline__ void store(Entry const* entries, uint32_t table, typename Decoder::X* slab) const {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      int const row = row_ + r * kWarps;
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        int const column = column_of(v);
        if (row >= rows_ || column_ + column >= args_.k) continue;
        Entry const& of = entries[column / kExpandSegment * kExpandPitch + row % kExpandRows];
        *reinterpret_cast<uint4*>(slab + int64_t{row} * args_.k + column_ + column) =
            Decoder::template numbers<kSymmetric>(codes_[r][v], column / 16 % 2, of, table);
      }
    }
  }

 private:
  __device__ __forceinline__ static int column_of(int vector) {
    return (static_cast<int>(threadIdx.x) % 32 + 32 * vector) * kVectorColumns;
  }

  LinearArgs const& args_;
  int64_t const first_;
  int const rows_;
  int const row_;
  int const column_;
  Codes codes_[kRows][kVectors];
};

/// Write rows first.. of W to `slab`, [rows, K].
///   first: a multiple of kExpandRows.
///   kBeside: the kernel before, which has waited for all that use the slab, may run until this one ends.
template <class Decoder, bool kBeside>
__global__ void __launch_bounds__(kExpandThreads, Decoder::kBlocks)
    expand_weights(LinearArgs const args, FoldedTables const tables, int64_t first, int rows,
                   typename Decoder::X* __restrict__ slab) {
  using Warp = ExpandWarp<Decoder>;
  using Entry = typename Decoder::Entry;
  __shared__ uint4 table[kFloatEntries];
  __shared__ Entry entries[Warp::kSegments * kExpandPitch];
  int const thread = static_cast<int>(threadIdx.x);
  int const row = static_cast<int>(blockIdx.y) * kExpandRows, column = static_cast<int>(blockIdx.x) * Warp::kColumns;

  Warp warp(args, first, rows, row, column);
  warp.load();
  bool const symmetric = __syncthreads_and(Decoder::Folded::fill(table, args, thread));
  auto const fill_entries = [&] {
    for (int item = thread; item < Warp::kSegments * kExpandRows; item += kExpandThreads) {
      // Beyond the last row and column the last ones, whose types certainly mean something.
      int64_t const n = min(first + row + item % kExpandRows, args.n - 1);
      int const group = group_of(args, column + item / kExpandRows * kExpandSegment);
      int const at = item / kExpandRows * kExpandPitch + item % kExpandRows;
      entries[at] = Decoder::entry(args, tables, group, n, symmetric);
    }
  };
  if constexpr (!Decoder::kPrepared) fill_entries();
  if constexpr (!kBeside) wait_for_predecessor();
  release_successor();
  if constexpr (Decoder::kPrepared) fill_entries();
  __syncthreads();
  if (symmetric) {
    warp.template store<true>(entries, shared_address(table), slab);
  } else {
    warp.template store<false>(entries, shared_address(table), slab);
  }
  // Whoever waits for this kernel waits for the one before, too.
  if constexpr (kBeside) {
    if (blockIdx.x == gridDim.x - 1 && blockIdx.y == gridDim.y - 1) wait_for_predecessor();
  }
}

}  // namespace graphopt::mant
