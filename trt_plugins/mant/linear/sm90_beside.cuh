// Writes the next slab of M-ANT's weights beside the product by the present one. See sm90_expand.cuh.
#pragma once

#include <cstdint>

#include "mant/linear/sm90_expand.cuh"

namespace graphopt::mant {

template <class Decoder>
struct ExpandBeside {
  using X = typename Decoder::X;
  using Codes = typename Decoder::Codes;
  using Entry = typename Decoder::Entry;
  static constexpr int kVectorColumns = kExpandVectorBytes / int{sizeof(X)};
  static constexpr int kColumns = kExpandRowBytes / int{sizeof(X)};
  static constexpr int kVectors = kExpandRowBytes / kExpandVectorBytes / 32;  // of a row, for each lane
  static constexpr int kRows = sizeof(X) == 1 ? 2 : 4;                        // of a turn, as registers allow

  struct Args {
    LinearArgs of;
    FoldedTables tables;
    int64_t first;  // row of W
    int32_t rows;   // of the slab; none: 0
    X* slab;        // [rows, K]
  };

  /// `memory`: for the table. Turns of a worker go down rows, whose scales and types share sectors.
  __device__ __forceinline__ static void run(Args const& args, uint8_t* memory, int worker, int workers) {
    if (args.rows == 0) return;
    int const lane = static_cast<int>(threadIdx.x) % 32;
    bool const symmetric = __all_sync(~0u, Decoder::Folded::fill(reinterpret_cast<uint4*>(memory), args.of, lane));
    __syncwarp();
    int const down = (args.rows + kRows - 1) / kRows, across = (args.of.k + kColumns - 1) / kColumns;
    int64_t const turns = int64_t{down} * across;
    auto const begin_of = [&](int of) { return static_cast<int>(turns * of / workers); };
    int const begin = begin_of(worker), end = begin_of(worker + 1);
    uint32_t const table = shared_address(memory);
    if (symmetric) {
      for (int turn = begin; turn < end; ++turn) expand<true>(args, table, lane, turn, down);
    } else {
      for (int turn = begin; turn < end; ++turn) expand<false>(args, table, lane, turn, down);
    }
  }

 private:
  template <bool kSymmetric>
  __device__ __forceinline__ static void expand(Args const& args, uint32_t table, int lane, int turn, int down) {
    int const row = turn % down * kRows, column = turn / down * kColumns + lane * kVectorColumns;
    prefetch_next(args, lane, row + kRows, turn / down * kColumns);
    Codes codes[kRows][kVectors];
    Entry entries[kRows][kVectors];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      int64_t const n = args.first + min(row + r, args.rows - 1);
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        int const at = min(column + 32 * kVectorColumns * v, args.of.k - kVectorColumns);
        int8_t const* const from = args.of.codes + n * args.of.row_bytes + at / 32 * 16 + at % 16;
        codes[r][v] = __ldg(reinterpret_cast<Codes const*>(from));
        entries[r][v] = Decoder::entry(args.of, args.tables, group_of(args.of, at), n, kSymmetric);
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        int const at = column + 32 * kVectorColumns * v;
        if (row + r >= args.rows || at >= args.of.k) continue;
        *reinterpret_cast<uint4*>(args.slab + int64_t{row + r} * args.of.k + at) =
            Decoder::template numbers<kSymmetric>(codes[r][v], at / 16 % 2, entries[r][v], table);
      }
    }
  }

  /// Bring the codes of the next turn into L2.
  __device__ __forceinline__ static void prefetch_next(Args const& args, int lane, int row, int column) {
    constexpr int kLine = 128, kLines = kColumns / 2 / kLine;
    int const byte = column / 2 + lane % kLines * kLine;
    row += lane / kLines;
    if (lane >= kLines * kRows || row >= args.rows || byte >= args.of.row_bytes) return;
    prefetch_line(args.of.codes + (args.first + row) * args.of.row_bytes + byte);
  }
};

}  // namespace graphopt::mant
