#include "vq/linear/expand.h"

#include <algorithm>

#include "common/gemm/sm90_time.h"

namespace graphopt::vq {
namespace {

constexpr int kChunk = kExpandColumns;
constexpr size_t kAlignment = 16;

// Of an H100: rates as measured for whole linears of presets, cycles of look-ups as counted.
constexpr double kMegahertz = 1700.0;
constexpr double kStart = 1.5;                         // microseconds of each launch behind another one
constexpr double kCachedBytesPerMicrosecond = 3.6e6;   // written to L2
constexpr double kWrittenBytesPerMicrosecond = 2.4e6;  // to memory
constexpr int64_t kCachedBytes = int64_t{40} << 20;    // of slabs that stay in L2
constexpr double kBookBytesPerCycle = 32.0;            // of codebooks from L2, to a multiprocessor

int64_t whole_lines(int64_t bytes) {
  constexpr int64_t kLine = 128;
  return (bytes + kLine - 1) / kLine * kLine;
}

int64_t entries(LinearParams const& p) { return int64_t{p.residuals} << p.bits; }

/// Cycles of shared memory or L1 for the look-ups of a warp, each lane's for a chunk: eight columns.
double look_up_cycles(LinearParams const& p, ExpandShape const& shape) {
  constexpr int kLanes = 32, kBytesPerCycle = 128, kMostLookUpBytes = 16;
  int const bytes = std::min(2 * p.vector, kMostLookUpBytes);
  double const look_ups = std::max(1, kChunk / p.vector) * p.residuals;
  if (p.lattice()) return p.residuals * (kLanes * 16 / kBytesPerCycle + 1.0);  // a row and its signs
  if (!shape.shared) return look_ups * kLanes * (p.vector == 16 ? 0.5 : 1.0);  // a line each
  // Eight lanes of 16 bytes, or sixteen of 8, meet so often in entries that have one, two, ... copies.
  constexpr double kMeet[] = {2.6, 2.3, 1.9, 1.0};
  int const most = std::max(1, kBytesPerCycle / (2 * p.vector));
  int missing = 0;
  while (missing < 3 && shape.copies << missing < most) ++missing;
  return look_ups * kLanes * bytes / kBytesPerCycle * kMeet[3 - missing];
}

}  // namespace

int64_t most_slab_rows(LinearParams const& p) {
  int64_t const rows = kSlabsBytes / (2 * p.k);
  return p.n <= rows ? p.n : rows / kSlabStep * kSlabStep;
}

int slab_turns(LinearParams const& p, int64_t rows) { return rows < p.n && 4 * rows * p.k <= kSlabsBytes ? 2 : 1; }

int64_t slab_bytes(LinearParams const& p, int64_t rows) { return whole_lines(2 * rows * p.k); }

int64_t slab_pitch(LinearParams const& p, int64_t rows) {
  return slab_bytes(p, rows) + whole_lines(rows * static_cast<int64_t>(sizeof(float)));
}

int64_t expanded_workspace_bytes(LinearParams const& p, int64_t rows) {
  return slab_turns(p, rows) * slab_pitch(p, rows);
}

bool has_slabs(LinearParams const& p) {
  return element_size(p.dtype) == 2 && p.k % kChunk == 0 && p.n % kChunk == 0 && most_slab_rows(p) > 0;
}

bool can_expand(LinearParams const& p) {
  constexpr int32_t kMostPoints = 2;
  if (!has_slabs(p) || !takes_vectors(p) || p.workspace == nullptr) return false;
  bool const outputs = is_aligned(p.workspace, kAlignment) && is_aligned(p.y, kAlignment);
  if (!outputs || !is_aligned(p.scale, kAlignment) || !is_aligned(p.bias, kAlignment)) return false;
  if (p.lattice()) return p.residuals <= kMostPoints;
  bool const rows = p.tile_rows >= p.n || p.tile_rows % kExpandRows == 0;
  return rows && (p.tile_columns >= p.k || p.tile_columns % kChunk == 0);
}

ExpandShape expand_shape(LinearParams const& p, int64_t shared_bytes) {
  constexpr int kMostBlocks = 4;  // of a multiprocessor
  constexpr int64_t kMostCopiesBytes = 128, kLeastCopiesBytes = 16, kReserved = 1024;
  int64_t const entry_bytes = 2 * p.vector;
  ExpandShape shape{true, 8, 0, 0, kLatticeTableBytes};
  if (!p.lattice()) {
    int64_t copies = kMostCopiesBytes / entry_bytes;
    while (copies > 1 && entries(p) * entry_bytes * copies + kReserved > shared_bytes) copies /= 2;
    int64_t const bytes = entries(p) * entry_bytes * copies;
    shape.shared = bytes + kReserved <= shared_bytes && entry_bytes * copies >= kLeastCopiesBytes;
    if (!shape.shared) return {false, 1, kUncachedThreads, kUncachedBlocks, 0};
    shape.copies = static_cast<int>(copies);
    shape.shared_bytes = bytes;
  }
  shape.per_multiprocessor = kMostBlocks;
  while (shape.per_multiprocessor > 1 && shape.per_multiprocessor * (shape.shared_bytes + kReserved) > shared_bytes) {
    shape.per_multiprocessor /= 2;
  }
  shape.threads = kExpandThreads / shape.per_multiprocessor;
  return shape;
}

double expand_time(LinearParams const& p, Device const& device, int64_t rows, int64_t slab_rows) {
  ExpandShape const shape = expand_shape(p, device.shared_bytes);
  double const warps = static_cast<double>(rows) * static_cast<double>(p.k) / (32 * kChunk);
  constexpr double kStores = 4.0, kCodes = 2.0;  // cycles of a warp's
  double const cycles = warps / device.multiprocessors * (look_up_cycles(p, shape) + kStores + kCodes);
  auto const bytes = static_cast<double>(slab_bytes(p, rows));
  bool const cached = expanded_workspace_bytes(p, slab_rows) <= kCachedBytes;
  double const rate = cached ? kCachedBytesPerMicrosecond : kWrittenBytesPerMicrosecond;
  double const books = shape.shared ? static_cast<double>(shape.shared_bytes) / kBookBytesPerCycle / kMegahertz : 0.0;
  return kStart + books + std::max(bytes / rate, cycles / kMegahertz);
}

double expanded_time(LinearParams const& p, Device const& device, int64_t slab_rows) {
  return slabs_time(p.m, p.n, p.k, /*size=*/2, slab_rows, slab_turns(p, slab_rows), device.multiprocessors,
                    [&](int64_t rows) { return expand_time(p, device, rows, slab_rows); });
}

int64_t best_slab_rows(LinearParams const& p, Device const& device) {
  constexpr int64_t kTried = 6;
  int64_t const most = most_slab_rows(p), fewest = tiles_along(p.n, most);
  int64_t best = most;
  double least = expanded_time(p, device, most);
  for (int64_t slabs = fewest; slabs < fewest + kTried; ++slabs) {
    int64_t const rows = std::min(most, tiles_along(tiles_along(p.n, slabs), kSlabStep) * kSlabStep);
    if (expanded_workspace_bytes(p, rows) > expanded_workspace_bytes(p, most)) continue;
    double const time = expanded_time(p, device, rows);
    if (time < least) least = time, best = rows;
  }
  return best;
}

}  // namespace graphopt::vq
