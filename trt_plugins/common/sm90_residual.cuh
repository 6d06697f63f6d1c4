// The residual of a Hopper linear kernel: it comes through the copy engine into the buffers that Y leaves through, part by
// part and as Y lies there, so that each thread finds beside each of its sums what is to be added to it.
#pragma once

#include <cstdint>

#include "common/hopper.cuh"

namespace graphopt {

/// A warpgroup's part of it. The first two parts of a tile start to come when the tile begins, so that their way from
/// memory is hidden behind the products; each later one when the part two before it has left its buffer.
class Sm90Residual {
 public:
  /// map: of the residual, in boxes of the size of a part; `bytes` of a box, 0 if there is no residual.
  /// barriers: two of the warpgroup's own. leader: the thread of the warpgroup that stores Y.
  __device__ __forceinline__ Sm90Residual(CUtensorMap const* map, uint32_t bytes, uint32_t barriers, bool leader)
      : map_(map), bytes_(bytes), barriers_(barriers), leader_(leader) {}

  /// One thread, before any other use.
  __device__ __forceinline__ static void init(uint32_t barriers) {
    mbarrier_init(barriers, 1);
    mbarrier_init(barriers + 8, 1);
  }

  __device__ __forceinline__ bool exists() const { return bytes_ > 0; }

  /// Start a tile of `parts` parts.
  ///   turn: of the two buffers, of the first part.
  ///   buffer_at(turn): its place in shared memory. at(part): its first {column, row} in Y.
  template <class BufferAt, class At>
  __device__ __forceinline__ void begin(int turn, int parts, BufferAt buffer_at, At at) const {
    if (!exists() || !leader_) return;
    bulk_wait_read<0>();
    for (int part = 0; part < parts && part < 2; ++part) load(turn ^ part, buffer_at(turn ^ part), at(part));
  }

  /// Wait for the part in the buffer of `turn`. The warpgroup may write Y over it then.
  __device__ __forceinline__ void wait(int turn) {
    mbarrier_wait(barriers_ + 8 * turn, parities_ >> turn & 1);
    parities_ ^= 1u << turn;
  }

  /// Part `part` of Y is on its way from `buffer`: bring the part after next, if the tile has so many.
  template <class At>
  __device__ __forceinline__ void advance(int turn, uint32_t buffer, int part, int parts, At at) const {
    if (!exists() || !leader_ || part + 2 >= parts) return;
    bulk_wait_read<0>();
    load(turn, buffer, at(part + 2));
  }

 private:
  __device__ __forceinline__ void load(int turn, uint32_t buffer, int2 first) const {
    mbarrier_arrive_expect(barriers_ + 8 * turn, bytes_);
    tma_load(buffer, map_, barriers_ + 8 * turn, first.x, first.y);
  }

  CUtensorMap const* const map_;
  uint32_t const bytes_;
  uint32_t const barriers_;
  bool const leader_;
  uint32_t parities_ = 0;  // a bit for each buffer
};

}  // namespace graphopt
