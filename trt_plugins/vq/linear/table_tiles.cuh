// What brings codes to the table kernel where codebooks are those of tiles of the weight.
#pragma once

#include <cstdint>

#include "vq/linear/table_walk.cuh"

namespace graphopt::vq {

/// The places of TablePlace<true> by whole tiles: both units at once.
struct TilePlace {
  int slice, row;

  template <class T>
  __device__ __forceinline__ static TilePlace of(TableArgs<T> const& args, int index) {
    return {index % args.slices, index / args.slices * 2 * kTableRows};
  }

  template <class T>
  __device__ __forceinline__ void advance(TableArgs<T> const& args) {
    if (++slice < args.slices) return;
    slice = 0;
    row += 2 * kTableRows;
  }
};

/// Codes of both units of a tile, with addresses made once for both, and its codebook of 256 x 4. Slots belong to one
/// thread each.
template <class T, int kDepth_>
class TileQueue : public UnitRing<T, TilePlace, 40 * kTableThreads, kDepth_> {
  using Ring = UnitRing<T, TilePlace, 40 * kTableThreads, kDepth_>;
  using Ring::after, Ring::ahead_, Ring::args_, Ring::read_, Ring::write_;
  static constexpr int kUnit = 16 * kTableThreads;

 public:
  using Ring::kDepth;

  /// Start the first tiles of `share`, which counts units.
  __device__ __forceinline__ TileQueue(TableArgs<T> const& args, TableShare share, uint32_t shared)
      : Ring(args, {share.begin / 2, share.count / 2}), shared_(shared) {
    turn_ = thread_ % 32 / 8;
#pragma unroll
    for (int d = 0; d < kDepth - 1; ++d) load();
  }

  /// This lane's codes of a unit of the next tile, of unit 0 first: word w is its word (w + lane / 8) modulo 4.
  template <int kHalf>
  __device__ __forceinline__ void take(uint32_t (&word)[4]) {
    if constexpr (kHalf == 0) {
      load();
      cp_async_wait<kDepth - 1>();
    }
    uint32_t const slot = shared_ + thread_ * 16;
#pragma unroll
    for (int w = 0; w < 4; ++w) word[w] = load_word(slot + (w + turn_) % 4 * 4 + read_ + kHalf * kUnit);
    if constexpr (kHalf == 1) read_ = after(read_);
  }

  /// The codebook of the next tile: elements 2 t and 2 t + 1 of entries lane / 4 and 8 + lane / 4 of this warp's 16,
  /// t = lane % 4 < 2.
  __device__ __forceinline__ void peek_entries(uint32_t (&entries)[2]) const {
    cp_async_wait<kDepth - 2>();
    uint32_t const slot = shared_ + 2 * kUnit + thread_ * 4;
    entries[0] = load_word(slot + read_);
    entries[1] = load_word(slot + read_ + 4 * kTableThreads);
  }

 private:
  __device__ __forceinline__ void load() {
    this->start([this] { copy(); });
  }

  /// Rows outside W are read as its last one.
  __device__ __forceinline__ void copy() const {
    int const lane = thread_ % 32, warp = thread_ / 32, byte = ahead_.slice * kSliceBytes + lane % 4 * 16;
    int const row = ahead_.row + warp * 8 + lane / 4;
    bool const valid = byte < args_.row_bytes;
    int8_t const* const codes = args_.codes + (valid ? byte : 0);
    uint32_t const slot = shared_ + write_ + thread_ * 16;
    cp_async_16(slot, offset_by_product(codes, min(row, args_.n - 1), args_.row_bytes), valid);
    cp_async_16(slot + kUnit, offset_by_product(codes, min(row + kTableRows, args_.n - 1), args_.row_bytes), valid);
    constexpr int kEntry = 8;  // bytes
    int const pair = ahead_.row / (2 * kTableRows);
    int const down = args_.tile_pairs == 1 ? pair : pair / args_.tile_pairs;  // a division is slow
    int const across = args_.tile_slices == 1 ? ahead_.slice : ahead_.slice / args_.tile_slices;
    int const book = down * args_.tiles_across + across;
    auto const* const books =
        reinterpret_cast<int8_t const*>(args_.codebooks) + (warp * 16 + lane / 4) * kEntry + lane % 4 * 4;
    if (lane % 4 < 2) {
      int8_t const* const entry = offset_by_product(books, book, 256 * kEntry);
      uint32_t const to = shared_ + write_ + 2 * kUnit + thread_ * 4;
      cp_async_4(to, entry);
      cp_async_4(to + 4 * kTableThreads, entry + 8 * kEntry);
    }
  }

  uint32_t const shared_;
  int const thread_ = static_cast<int>(threadIdx.x);
  int turn_;
};

}  // namespace graphopt::vq
