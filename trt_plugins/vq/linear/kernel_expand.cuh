// Rows of c, rounded to T as in the kernels that decode while they multiply, written to memory for a plain GEMM.
//
// A thread makes eight columns, which are one store of 16 bytes, of a few rows at a time; neighbouring threads
// make neighbouring columns, so that a warp stores 512 bytes of a row. Codes of the next turn are on their way
// meanwhile. Entries are looked up in shared memory, in copies against bank conflicts as in book.cuh, or through the
// caches where codebooks are too large. b, r and the tiles are numbers of the launch: little is to be gained from
// knowing them, as what is written bounds the time.
#pragma once

#include <cstdint>

#include "common/ptx.cuh"
#include "common/vec.cuh"
#include "vq/linear/expand.h"
#include "vq/linear/lattice.cuh"

namespace graphopt::vq {

struct ExpandArgs {
  int8_t const* codes;      // [rows, row_bytes]
  __half const* codebooks;  // of the whole weight; null: the lattice
  float const* ratios;      // of the lattice
  float const* scale;       // [rows]
  float* factors;           // [rows], of the lattice: scale * ratios[0]
  void* w;                  // [rows, 8 chunks] T
  int32_t first_row;        // of W; this, rows and tile_rows are multiples of kExpandRows
  int32_t rows;
  int32_t chunks;  // of eight columns, in a row
  int32_t row_bytes;
  int32_t bits;
  int32_t residuals;
  int32_t chunk_bits;    // of codes, of a chunk; where an entry has two chunks, of both
  int32_t halved;        // 1 where an entry has two chunks
  int32_t copies;        // of an entry in shared memory
  int32_t tile_rows;     // at least first_row + rows where codebooks do not change with rows
  int32_t tile_chunks;   // at least `chunks` where they do not change along K
  int32_t tiles_across;  // along K
  int32_t parts;         // blocks that share a tile
  int32_t units;         // tiles that these rows meet, times parts
  int32_t beside;        // see Slab
};

/// What a block does at a time: a part of the rows and columns that share codebooks.
struct ExpandUnit {
  int first_row, end_row;  // counted from the first row that is expanded
  int first_chunk, chunks;
  int64_t tile;
  int part;

  __device__ __forceinline__ ExpandUnit(ExpandArgs const& args, int unit) : part(unit % args.parts) {
    int const index = unit / args.parts, across = index % args.tiles_across;
    int const down = args.first_row / args.tile_rows + index / args.tiles_across;
    first_row = max(down * args.tile_rows - args.first_row, 0);
    end_row = min((down + 1) * args.tile_rows - args.first_row, args.rows);
    first_chunk = across * args.tile_chunks;
    chunks = min(args.tile_chunks, args.chunks - first_chunk);
    tile = int64_t{down} * args.tiles_across + across;
  }
};

/// Words of the codes of kRows rows, from a bit that is the same in all of them. kAligned: it is a word's first.
template <int kRows, bool kAligned>
class ExpandCodes {
 public:
  __device__ __forceinline__ void start(ExpandArgs const& args, int row, int bit) {
    int const word = bit / 32;
    bool const more = !kAligned && 4 * word + 4 < args.row_bytes;  // a row ends with a whole word
    int8_t const* codes = args.codes + int64_t{row} * args.row_bytes + 4 * word;
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
      load(low_[u], codes, true);
      if constexpr (!kAligned) load(high_[u], codes + 4, more);
      codes += args.row_bytes;
    }
    shift_ = static_cast<uint32_t>(bit) % 32;
  }

  /// The 32 bits from there on.
  __device__ __forceinline__ void get(uint32_t (&window)[kRows]) const {
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
      window[u] = kAligned ? low_[u] : __funnelshift_r(low_[u], high_[u], shift_);
    }
  }

 private:
  /// Where `wanted`, else `word` is undefined. Volatile, so that loads start where they are written.
  __device__ __forceinline__ static void load(uint32_t& word, int8_t const* pointer, bool wanted) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %2, 0;\n@p ld.global.nc.u32 %0, [%1];\n}"
                 : "=r"(word)
                 : "l"(pointer), "r"(static_cast<uint32_t>(wanted)));
  }

  uint32_t low_[kRows], high_[kRows];
  uint32_t shift_;
};

/// kWords words from memory.
template <int kWords>
__device__ __forceinline__ void load_words(uint32_t (&w)[kWords], char const* source) {
  if constexpr (kWords == 4) {
    uint4 const q = __ldg(reinterpret_cast<uint4 const*>(source));
    w[0] = q.x, w[1] = q.y, w[2] = q.z, w[3] = q.w;
  } else if constexpr (kWords == 2) {
    uint2 const q = __ldg(reinterpret_cast<uint2 const*>(source));
    w[0] = q.x, w[1] = q.y;
  } else {
    w[0] = __ldg(reinterpret_cast<uint32_t const*>(source));
  }
}

/// Trained codebooks. kWords: of an entry that eight columns take, min(v, 8) / 2. kShared: codebooks are in shared
/// memory, in copies of at least 16 bytes together.
template <class T_, int kWords, bool kShared_>
class BookSource {
 public:
  using T = T_;
  static constexpr int kRows = kWords == 1 ? kExpandRows / 2 : kExpandRows;  // which registers hold
  using Codes = ExpandCodes<kRows, false>;
  static constexpr bool kShared = kShared_;
  static constexpr bool kLattice = false;
  static constexpr int kVectors = 4 / kWords;  // that eight columns touch

  __device__ __forceinline__ BookSource(ExpandArgs const& args, uint32_t table)
      : args_(args), entry_bytes_(4 * kWords << halved()), pitch_(entry_bytes_ * (kShared ? args.copies : 1)) {
    // Lanes that read the halves of an entry share a copy.
    uint32_t const copy = threadIdx.x % 32 >> halved() & static_cast<uint32_t>(args.copies - 1);
    table_ = table + (kShared ? copy * entry_bytes_ : 0);
  }

  /// Bring the codebooks of a tile to `table`.
  __device__ __forceinline__ void bring(int64_t tile, uint32_t table) {
    uint32_t const entries = static_cast<uint32_t>(args_.residuals) << args_.bits;
    books_ = reinterpret_cast<char const*>(args_.codebooks) + tile * (int64_t{entries} * entry_bytes_);
    if constexpr (kShared) {
      constexpr int kPiece = 16, kBatch = 4;  // bytes; pieces of a thread that are on their way
      int const shift = 31 - __clz(static_cast<int>(pitch_) / kPiece);  // pieces of an entry's copies: a power of two
      uint32_t const pieces = entries << shift;
      for (uint32_t first = threadIdx.x; first < pieces; first += kBatch * blockDim.x) {
        uint32_t words[kBatch][kWords];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          uint32_t const piece = min(first + i * blockDim.x, pieces - 1);
          uint32_t const half = piece & static_cast<uint32_t>(halved());
          load_words(words[i], books_ + (piece >> shift) * entry_bytes_ + kPiece * half);
        }
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
#pragma unroll
          for (uint32_t& word : words[i]) word = from_half_pair<T>(word);
          // A piece behind the last one is that one again.
          store_shared(table + kPiece * min(first + i * blockDim.x, pieces - 1), words[i][0], words[i][1 % kWords],
                       words[i][2 % kWords], words[i][3 % kWords]);
        }
      }
    }
  }

  /// The first bit of a chunk's codes.
  __device__ __forceinline__ int first_bit(int chunk) const { return (chunk >> halved()) * args_.chunk_bits; }

  /// Eight columns of each row. refill(n): window becomes the 32 bits from bit n of the chunk's codes on.
  template <class Refill>
  __device__ __forceinline__ void decode(uint32_t (&out)[kRows][4], uint32_t (&window)[kRows], int chunk,
                                         Refill const& refill) const {
    uint32_t const skipped = 16 * static_cast<uint32_t>(chunk & halved());  // bytes of an entry
    int taken = 0, used = 0;                                                // bits, before the window and of it
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      auto const add = [&](int i, auto first) {
        if (used + args_.bits > 32) {
          taken += used;
          used = 0;
          refill(window, taken);
        }
        used += args_.bits;
        uint32_t entry[kRows][kWords];
        look_up(entry, window, static_cast<uint32_t>(i), skipped);
#pragma unroll
        for (int u = 0; u < kRows; ++u) {
#pragma unroll
          for (int w = 0; w < kWords; ++w) {
            uint32_t& sum = out[u][j * kWords + w];
            sum = decltype(first)::value ? entry[u][w] : add_pair<T>(sum, entry[u][w]);
          }
        }
      };
      add(0, std::true_type{});
#pragma unroll 1
      for (int i = 1; i < args_.residuals; ++i) add(i, std::false_type{});
    }
  }

 private:
  __device__ __forceinline__ int halved() const { return kWords == 4 ? args_.halved : 0; }

  /// Entries of residual i that the lowest bits of windows name, from byte `skipped` on; those bits are dropped.
  __device__ __forceinline__ void look_up(uint32_t (&entry)[kRows][kWords], uint32_t (&window)[kRows], uint32_t i,
                                          uint32_t skipped) const {
    uint32_t const mask = (uint32_t{1} << args_.bits) - 1;
    uint32_t const residual = (i << args_.bits) * pitch_ + skipped;
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
      uint32_t const code = window[u] & mask;
      window[u] >>= args_.bits;
      if constexpr (kShared) {
        load_shared(entry[u], table_ + residual + code * pitch_);
      } else {
        load_words(entry[u], books_ + (residual + code * pitch_));
#pragma unroll
        for (uint32_t& word : entry[u]) word = from_half_pair<T>(word);
      }
    }
  }

  ExpandArgs const& args_;
  uint32_t const entry_bytes_;
  uint32_t const pitch_;  // bytes from an entry to the next
  uint32_t table_;        // of this lane's copies
  char const* books_ = nullptr;
};

/// The lattice E8, in units of ratios[0].
template <class T_, int r>
class LatticeSource {
  using Weights = LatticeWeights<T_, r, /*kPairs=*/false>;
  static_assert(Weights::kSharedBytes == kLatticeTableBytes);

 public:
  using T = T_;
  static constexpr int kRows = kExpandRows;
  using Codes = ExpandCodes<kRows, r == 2>;
  static constexpr bool kShared = true;
  static constexpr bool kLattice = true;

  __device__ __forceinline__ LatticeSource(ExpandArgs const& args, uint32_t table)
      : decoder_(table, static_cast<int>(threadIdx.x) % 32, args.ratios) {}

  /// Make the table. A block has a thread for each of its rows.
  __device__ __forceinline__ void bring(int64_t, uint32_t table) const {
    int const thread = static_cast<int>(threadIdx.x);
    if (thread < kE8Rows) typename Weights::template Loader<kE8Rows>(thread).copy(nullptr, table);
  }

  __device__ __forceinline__ int first_bit(int chunk) const { return chunk * 16 * r; }

  template <class Refill>
  __device__ __forceinline__ void decode(uint32_t (&out)[kRows][4], uint32_t (&window)[kRows], int,
                                         Refill const&) const {
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
      typename Weights::Codes codes;
      codes.word[0] = window[u];
      decoder_.eight(out[u], codes, 0);
    }
  }

 private:
  typename Weights::Decoder const decoder_;
};

/// A unit's columns, by all threads of the blocks that share its tile. `first`: nothing has been written yet, and the
/// kernel before may still run.
template <class Source>
__device__ __forceinline__ void expand_unit(ExpandArgs const& args, ExpandUnit const& unit, Source const& source,
                                            bool first) {
  using T = typename Source::T;
  constexpr int kChunk = kExpandColumns, kRows = Source::kRows;
  int const stride = args.parts * static_cast<int>(blockDim.x);
  int const mine = unit.part * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x);
  int const steps = stride / unit.chunks * kRows, rest = stride % unit.chunks;
  int row = unit.first_row + mine / unit.chunks * kRows, chunk = mine % unit.chunks;
  typename Source::Codes codes;
  if (row < unit.end_row) codes.start(args, row, source.first_bit(unit.first_chunk + chunk));
  if (first) {
    if (args.beside == 0) wait_for_predecessor();
    release_successor();
  }
  while (row < unit.end_row) {
    int const this_row = row, this_chunk = unit.first_chunk + chunk;
    uint32_t window[kRows], out[kRows][4];
    codes.get(window);
    row += steps;
    chunk += rest;
    if (chunk >= unit.chunks) {
      chunk -= unit.chunks;
      row += kRows;
    }
    if (row < unit.end_row) codes.start(args, row, source.first_bit(unit.first_chunk + chunk));
    source.decode(out, window, this_chunk, [&](uint32_t (&refilled)[kRows], int bit) {
      typename Source::Codes more;
      more.start(args, this_row, source.first_bit(this_chunk) + bit);
      more.get(refilled);
    });
    T* to = static_cast<T*>(args.w) + (int64_t{this_row} * args.chunks + this_chunk) * kChunk;
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
      *reinterpret_cast<uint4*>(to) = make_uint4(out[u][0], out[u][1], out[u][2], out[u][3]);
      to += args.chunks * kChunk;
    }
  }
}

/// Write rows of c. Codes, codebooks and scales are read before the kernel before has ended.
template <class Source>
__global__ void __launch_bounds__(Source::kShared ? kExpandThreads : kUncachedThreads,
                                  Source::kShared ? 1 : kUncachedBlocks)
    expand(__grid_constant__ ExpandArgs const args) {
  extern __shared__ __align__(128) uint8_t memory[];
  Source source(args, shared_address(memory));
  bool first = true;
  for (int i = static_cast<int>(blockIdx.x); i < args.units; i += static_cast<int>(gridDim.x)) {
    ExpandUnit const unit(args, i);
    if (Source::kShared && !first) __syncthreads();  // everyone has left the tile before
    source.bring(unit.tile, shared_address(memory));
    if constexpr (Source::kShared) __syncthreads();
    expand_unit(args, unit, source, first);
    first = false;
  }
  if constexpr (Source::kLattice) {
    float const ratio = __ldg(args.ratios);
    int const threads = static_cast<int>(gridDim.x * blockDim.x);
    for (int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < args.rows; i += threads) {
      args.factors[i] = __ldg(args.scale + i) * ratio;
    }
  }
  // Whoever waits for this kernel waits for the one before, too.
  if (args.beside != 0 && blockIdx.x == gridDim.x - 1) wait_for_predecessor();
}

}  // namespace graphopt::vq
