// How a persistent block of the Hopper linear kernels walks Y.
#pragma once

#include "common/hopper.cuh"
#include "common/sm90_grid.h"

namespace graphopt {

/// The tiles of one block. Clusters take every one of theirs in the order of Sm90Grid; their blocks lie side by side
/// along the rows of W.
///   kTokens, kRows: of a tile. kCluster: blocks of a cluster.
template <int kTokens, int kRows, int kCluster = 1>
class TileWalk {
 public:
  __device__ __forceinline__ explicit TileWalk(Sm90Grid const& grid)
      : grid_(grid),
        rank_(kCluster == 1 ? 0 : static_cast<int>(cluster_rank())),
        index_(static_cast<int>(blockIdx.x) / kCluster) {}

  __device__ __forceinline__ int rank() const { return rank_; }

  /// Whether there is another tile; then `token` and `row` are its first token and row of W.
  __device__ __forceinline__ bool next(int& token, int& row) {
    if (index_ >= grid_.clusters()) return false;
    Sm90Grid::Cell const cell = grid_.cell(index_);
    index_ += static_cast<int>(gridDim.x) / kCluster;
    token = cell.down * kTokens;
    row = (cell.across * kCluster + rank_) * kRows;
    return true;
  }

 private:
  Sm90Grid const& grid_;
  int const rank_;
  int index_;
};

}  // namespace graphopt
