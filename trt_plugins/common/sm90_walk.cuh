// How a persistent block of the Hopper linear kernels walks Y.
#pragma once

#include "common/sm90_grid.h"

namespace graphopt {

/// The tiles of one block, every gridDim.x-th one in the order of Sm90Grid.
///   kTokens, kRows: of a tile.
template <int kTokens, int kRows>
class TileWalk {
 public:
  __device__ __forceinline__ explicit TileWalk(Sm90Grid const& grid)
      : grid_(grid), index_(static_cast<int>(blockIdx.x)) {}

  /// Whether there is another tile; then `token` and `row` are its first token and row of W.
  __device__ __forceinline__ bool next(int& token, int& row) {
    if (index_ >= grid_.clusters()) return false;
    Sm90Grid::Cell const cell = grid_.cell(index_);
    index_ += static_cast<int>(gridDim.x);
    token = cell.down * kTokens;
    row = cell.across * kRows;
    return true;
  }

 private:
  Sm90Grid const& grid_;
  int index_;
};

}  // namespace graphopt
