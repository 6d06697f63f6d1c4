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

constexpr int64_t kMostSlabBytes = int64_t{64} << 20;
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

// `size` below: bytes of the number that a code becomes, 1 or 2.

constexpr ExpandCost const& expand_cost(int size) { return size == 1 ? kExpandInt8 : kExpandHalf; }

/// Rows of W that the workspace holds; 0 if it does not hold those of a tile.
constexpr int64_t most_slab_rows(int size, int64_t n, int64_t k) {
  int64_t const rows = std::min(kMostSlabRows, kMostSlabBytes / (k * size));
  return n <= rows ? n : rows / kSlabStep * kSlabStep;
}

/// Bytes that they take, a multiple of 16.
constexpr int64_t slab_bytes(int size, int64_t n, int64_t k) {
  return (most_slab_rows(size, n, k) * k * size + 15) / 16 * 16;
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
  auto const slab = [&](int64_t of) {
    double const written = static_cast<double>(of * k * size) / expand_cost(size).bytes_per_microsecond;
    return kGemmLaunchTime + written + gemm_time(m, of, k, size, multiprocessors);
  };
  int64_t const whole = n / rows, rest = n % rows;
  return static_cast<double>(whole) * slab(rows) + (rest > 0 ? slab(rest) : 0.0);
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
    double const time = expanded_time(size, m, n, k, rows, multiprocessors);
    if (time < least) least = time, best = rows;
  }
  return best;
}

}  // namespace graphopt::mant
