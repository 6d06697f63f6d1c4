// How decode spreads over the device: the tiles of all sequences stand in one list, and every block takes an equal
// stretch of it, at segments' ends where that costs nothing. Lengths are known on the device only, so the list is never
// written down.
//
//   for every outer (row tile, key/value head): for every sequence: for every kTileTokens cached tokens
//
// A sequence of one outer index is a segment. A stretch may begin and end inside a segment; such parts go to memory, and
// the last block to finish one of a segment adds them up, in the order of the blocks.
#pragma once

#include <cstdint>

#include "attention/args.cuh"
#include "attention/policy.h"

namespace graphopt::attention {

/// a / b of numbers that are not negative: 64 bits take hundreds of cycles, and tiles are seldom that many.
__device__ __forceinline__ int64_t quotient(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}

/// A tile of the list.
struct Cursor {
  int32_t outer;
  int32_t b;
  int32_t past;    // rows of sequence b before this call
  int32_t length;  // rows of sequence b in the cache
  int32_t tiles;   // of the segment
  int32_t tile;
};

template <int kTileTokens>
class TileList {
 public:
  /// Called by whole warps.
  template <class T>
  __device__ __forceinline__ TileList(AttentionArgs<T> const& args, int32_t outers)
      : start_(args.start), batch_(args.batch), seq_(args.seq), capacity_(args.capacity) {
    int32_t sum = 0, most = 0;
    for (int32_t b = lane(); b < batch_; b += 32) {
      int32_t const tiles = tiles_of(b);
      sum += tiles;
      most = max(most, tiles);
    }
    per_outer_ = __reduce_add_sync(0xffffffffu, sum);
    most = __reduce_max_sync(0xffffffffu, most);
    total_ = int64_t{per_outer_} * outers;
    blocks_ = static_cast<int32_t>(min(int64_t{gridDim.x}, total_));
    if (int64_t{most} * batch_ == per_outer_ && total_ <= INT32_MAX) {
      blocks_ = static_cast<int32_t>(even_blocks(static_cast<uint32_t>(blocks_), static_cast<uint32_t>(batch_ * outers),
                                                 static_cast<uint32_t>(most)));
    }
    share_ = static_cast<int32_t>(quotient(total_, blocks_));
    rest_ = static_cast<uint32_t>(total_ - int64_t{share_} * blocks_);
  }

  __device__ __forceinline__ int32_t blocks() const { return blocks_; }

  /// The first tile of a block, total block / blocks; that of block blocks() is the end of the list.
  __device__ __forceinline__ int64_t first(int32_t block) const {
    return int64_t{share_} * block + rest_ * static_cast<uint32_t>(block) / static_cast<uint32_t>(blocks_);
  }

  /// The block that has a tile: blocks are so few that a float tells which one, or its neighbour.
  __device__ __forceinline__ int32_t block_of(int64_t position) const {
    float const part = __fdividef(static_cast<float>(position), static_cast<float>(total_));
    int32_t block = min(static_cast<int32_t>(part * static_cast<float>(blocks_)), blocks_ - 1);
    while (first(block) > position) --block;
    while (first(block + 1) <= position) ++block;
    return block;
  }

  /// Called by whole warps.
  __device__ __forceinline__ Cursor at(int64_t position) const {
    Cursor c;
    c.outer = static_cast<int32_t>(quotient(position, per_outer_));
    int32_t rest = static_cast<int32_t>(position - int64_t{c.outer} * per_outer_);
    for (int32_t base = 0;; base += 32) {
      int32_t const own = base + lane() < batch_ ? tiles_of(base + lane()) : 0;
      int32_t upto = own;
#pragma unroll
      for (int offset = 1; offset < 32; offset *= 2) {
        int32_t const below = __shfl_up_sync(0xffffffffu, upto, offset);
        if (lane() >= offset) upto += below;
      }
      uint32_t const beyond = __ballot_sync(0xffffffffu, rest < upto);
      if (beyond != 0) {
        int const owner = __ffs(static_cast<int>(beyond)) - 1;
        c.tile = rest - __shfl_sync(0xffffffffu, upto - own, owner);
        enter(c, base + owner);
        return c;
      }
      rest -= __shfl_sync(0xffffffffu, upto, 31);
    }
  }

  __device__ __forceinline__ void advance(Cursor& c) const {
    if (++c.tile == c.tiles) next_segment(c);
  }

  __device__ __forceinline__ void next_segment(Cursor& c) const {
    c.tile = 0;
    bool const wraps = c.b + 1 == batch_;
    c.outer += wraps ? 1 : 0;
    enter(c, wraps ? 0 : c.b + 1);
  }

 private:
  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }

  __device__ __forceinline__ int32_t tiles_of(int32_t b) const {
    int32_t const length = visible_rows(past_rows(start_, b, capacity_), seq_ - 1, capacity_);
    return (length + kTileTokens - 1) / kTileTokens;
  }

  __device__ __forceinline__ void enter(Cursor& c, int32_t b) const {
    c.b = b;
    c.past = past_rows(start_, b, capacity_);
    c.length = visible_rows(c.past, seq_ - 1, capacity_);
    c.tiles = (c.length + kTileTokens - 1) / kTileTokens;
  }

  int32_t const* start_;
  int32_t batch_, seq_, capacity_;
  int32_t per_outer_;
  int32_t blocks_;
  int32_t share_;   // tiles of every block,
  uint32_t rest_;   // and tiles that are left
  int64_t total_;
};

/// Who has parts of a segment.
struct Parts {
  int32_t first;  // the first block that has a part of it
  int32_t last;   // the last

  template <class List>
  __device__ __forceinline__ Parts(List const& list, int64_t begin, int32_t tiles)
      : first(list.block_of(begin)), last(list.block_of(begin + tiles - 1)) {}

  __device__ __forceinline__ bool whole() const { return first == last; }

  /// Slot of a block's part: a block has at most one part that begins before its stretch and one that begins in it.
  __device__ __forceinline__ int64_t slot(int32_t block) const { return int64_t{block} * 2 + (block == first ? 1 : 0); }
};

/// The tiles of the list that a block takes.
class Stretch {
 public:
  template <class List>
  __device__ __forceinline__ explicit Stretch(List const& list)
      : position_(list.first(static_cast<int32_t>(blockIdx.x))),
        left_(static_cast<int32_t>(list.first(static_cast<int32_t>(blockIdx.x) + 1) - position_)) {}

  __device__ __forceinline__ int64_t position() const { return position_; }
  __device__ __forceinline__ int32_t left() const { return left_; }

  /// Walk over the stretch once: work(cursor, tiles, parts) for every segment, with the first of its `tiles` tiles here.
  ///   at: cursor of the stretch's first tile.
  template <class List, class Work>
  __device__ __forceinline__ void walk(List const& list, Cursor at, Work const& work) {
    while (left_ > 0) {
      int32_t const tiles = min(left_, at.tiles - at.tile);
      work(at, tiles, Parts(list, position_ - at.tile, at.tiles));
      position_ += tiles;
      left_ -= tiles;
      if (left_ > 0) list.next_segment(at);
    }
  }

 private:
  int64_t position_;
  int32_t left_;
};

/// Memory of the parts: for every slot the unnormalized outputs [rows, D], then their maxima and sums [rows, 2], and
/// two floats a row that keep the next slot aligned to 16 bytes where D is a multiple of 4.
struct PartialMemory {
  float* base;
  int32_t rows;
  int32_t head_size;

  static __host__ __device__ int64_t floats(int64_t rows, int64_t head_size) { return rows * (head_size + 4); }

  __device__ __forceinline__ float* outputs(int64_t slot, int32_t row) const {
    return base + slot * floats(rows, head_size) + int64_t{row} * head_size;
  }
  __device__ __forceinline__ float* sums(int64_t slot, int32_t row) const {
    return base + slot * floats(rows, head_size) + int64_t{rows} * head_size + row * 2;
  }
};

}  // namespace graphopt::attention
