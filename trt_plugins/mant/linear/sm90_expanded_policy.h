// Whether the Hopper M-ANT linear for many tokens writes weights out before it multiplies by them, and how many rows at
// a time. Host code only.
//
// Kernels that decode where they multiply do it again for every 256 tokens, and take A from registers, which costs them
// a fifth of the tensor cores' rate. Numbers describe an H100 SXM (benchmarks/results/h100/mant.json).
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/gemm/sm90_time.h"

namespace graphopt::mant {

constexpr int64_t kSlabsBytes = int64_t{128} << 20;  // at most, of one slab, or of two that take turns
constexpr int64_t kSlabStep = 256;                   // rows of a tile of the product
constexpr int64_t kMostSlabRows = int64_t{1} << 20;  // the launch grid's second dimension

/// What a number costs by whether it is written or decoded where it is multiplied.
struct ExpandCost {
  double bytes_per_microsecond;  // written
  double per_stage;              // microseconds for 128 bytes of K of 256 x 256 of Y, decoded where it is multiplied
  double per_tile;               // microseconds for what follows those products
};

constexpr ExpandCost kExpandInt8 = {2.0e6, 0.80, 8.0};
constexpr ExpandCost kExpandHalf = {3.5e6, 0.85, 5.0};

constexpr double kExpandLaunchTime = 1.5;  // microseconds, behind a product

// `size` below: bytes of the number that a code becomes, 1 or 2.

constexpr ExpandCost const& expand_cost(int size) { return size == 1 ? kExpandInt8 : kExpandHalf; }

/// Rows of W that a slab has at most; 0 if that is less than a tile.
constexpr int64_t most_slab_rows(int size, int64_t n, int64_t k) {
  int64_t const rows = std::min(kMostSlabRows, kSlabsBytes / (k * size));
  return n <= rows ? n : rows / kSlabStep * kSlabStep;
}

/// Slabs of `rows` that take turns: 2 where they are not all of W and have room, else 1.
constexpr int slab_turns(int size, int64_t n, int64_t k, int64_t rows) {
  return rows < n && 2 * rows * k * size <= kSlabsBytes ? 2 : 1;
}

/// Bytes from one slab of `rows` to the other, a multiple of 16.
constexpr int64_t slab_pitch(int size, int64_t rows, int64_t k) { return (rows * k * size + 15) / 16 * 16; }

/// Bytes of as many as take turns.
constexpr int64_t slabs_bytes(int size, int64_t n, int64_t k, int64_t rows) {
  return slab_turns(size, n, k, rows) * slab_pitch(size, rows, k);
}

/// The most that they take.
constexpr int64_t slabs_bytes(int size, int64_t n, int64_t k) {
  return slabs_bytes(size, n, k, most_slab_rows(size, n, k));
}

/// Estimated microseconds of kernels that decode where they multiply.
constexpr double folded_time(int size, int64_t m, int64_t n, int64_t k, int multiprocessors) {
  int64_t const waves = tiles_along(tiles_along(m, 256) * tiles_along(n, 256), multiprocessors / 2);
  ExpandCost const& cost = expand_cost(size);
  return kGemmLaunchTime +
         static_cast<double>(waves) * (static_cast<double>(gemm_stages(k, size)) * cost.per_stage + cost.per_tile);
}

/// Estimated microseconds with slabs of `rows`.
constexpr double expanded_time(int size, int64_t m, int64_t n, int64_t k, int64_t rows, int multiprocessors) {
  return slabs_time(m, n, k, size, rows, slab_turns(size, n, k, rows), multiprocessors, [&](int64_t of) {
    return kExpandLaunchTime + static_cast<double>(of * k * size) / expand_cost(size).bytes_per_microsecond;
  });
}

/// Rows of W that are best written out at once, by estimate; 0 if kernels that decode where they multiply are faster.
constexpr int64_t pick_slab_rows(int size, int64_t m, int64_t n, int64_t k, int multiprocessors) {
  constexpr int64_t kTried = 8;  // numbers of slabs
  int64_t const most = most_slab_rows(size, n, k);
  if (most < 1) return 0;
  int64_t best = 0;
  double least = folded_time(size, m, n, k, multiprocessors);
  int64_t const fewest = tiles_along(n, most);
  for (int64_t slabs = fewest; slabs < fewest + kTried; ++slabs) {
    int64_t const rows = std::min(most, tiles_along(tiles_along(n, slabs), kSlabStep) * kSlabStep);
    if (slabs_bytes(size, n, k, rows) > slabs_bytes(size, n, k)) continue;
    double const time = expanded_time(size, m, n, k, rows, multiprocessors);
    if (time < least) least = time, best = rows;
  }
  return best;
}

}  // namespace graphopt::mant
