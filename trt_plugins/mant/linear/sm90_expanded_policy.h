// Whether the Hopper M-ANT linear for many tokens writes weights out before it multiplies by them, and how many rows at a
// time. Host code only.
//
// Kernels that decode where they multiply do it again for every 256 tokens, and take A from registers, which costs them
// a fifth of the tensor cores' rate. Numbers describe an H100 SXM (benchmarks/results/h100/mant.json).
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/gemm/gemm.h"
#include "mant/linear/params.h"

namespace graphopt::mant {

constexpr int64_t kMostSlabBytes = int64_t{64} << 20;
constexpr int64_t kSlabStep = 256;                    // rows of a tile of the product
constexpr int64_t kMostSlabRows = int64_t{1} << 20;   // the launch grid's second dimension
constexpr double kSlabBytesPerMicrosecond = 3.5e6;    // written to L2
constexpr double kFoldedHalfStage = 0.95;             // microseconds for 64 columns, of tiles of 256 x 256
constexpr double kFoldedInt8Stage = 1.05;             // the same for 128 columns

/// Type of the numbers that codes become.
constexpr DType expanded_type(Decode decode, DType dtype) {
  return decode == Decode::kBytes ? DType::kInt8 : decode == Decode::kSplit ? DType::kFloat16 : dtype;
}

constexpr int64_t expanded_size(Decode decode) { return decode == Decode::kBytes ? 1 : 2; }

/// Rows of W that the workspace holds; 0 if it does not hold those of a tile.
constexpr int64_t most_slab_rows(Decode decode, int64_t n, int64_t k) {
  int64_t const rows = std::min(kMostSlabRows, kMostSlabBytes / (k * expanded_size(decode)));
  return n <= rows ? n : rows / kSlabStep * kSlabStep;
}

/// Bytes that they take, a multiple of 16.
constexpr int64_t slab_bytes(Decode decode, int64_t n, int64_t k) {
  return (most_slab_rows(decode, n, k) * k * expanded_size(decode) + 15) / 16 * 16;
}

/// Estimated microseconds of kernels that decode where they multiply.
constexpr double folded_time(Decode decode, int64_t m, int64_t n, int64_t k, int multiprocessors) {
  bool const bytes = decode == Decode::kBytes;
  int64_t const waves = tiles_along(tiles_along(m, 256) * tiles_along(n, 256), multiprocessors / 2);
  int64_t const stages = tiles_along(k * expanded_size(decode), 128);
  return kGemmLaunchTime + static_cast<double>(waves * stages) * (bytes ? kFoldedInt8Stage : kFoldedHalfStage);
}

/// Estimated microseconds with slabs of `rows`.
constexpr double expanded_time(Decode decode, int64_t m, int64_t n, int64_t k, int64_t rows, int multiprocessors) {
  DType const type = expanded_type(decode, DType::kFloat16);
  auto const slab = [&](int64_t of) {
    double const bytes = static_cast<double>(of * k * expanded_size(decode));
    return kGemmLaunchTime + bytes / kSlabBytesPerMicrosecond + gemm_time(m, of, k, type, multiprocessors);
  };
  int64_t const whole = n / rows, rest = n % rows;
  return static_cast<double>(whole) * slab(rows) + (rest > 0 ? slab(rest) : 0.0);
}

/// Rows of W that are written out at once, as few in each slab as do not make the whole slower; 0 if kernels that decode
/// where they multiply are estimated to be faster.
constexpr int64_t pick_slab_rows(Decode decode, int64_t m, int64_t n, int64_t k, int multiprocessors) {
  constexpr int64_t kTried = 8;  // numbers of slabs
  int64_t const most = most_slab_rows(decode, n, k);
  if (most < 1) return 0;
  int64_t best = 0;
  double least = folded_time(decode, m, n, k, multiprocessors);
  int64_t const fewest = tiles_along(n, most);
  for (int64_t slabs = fewest; slabs < fewest + kTried; ++slabs) {
    int64_t const rows = std::min(most, tiles_along(tiles_along(n, slabs), kSlabStep) * kSlabStep);
    double const time = expanded_time(decode, m, n, k, rows, multiprocessors);
    if (time < least) least = time, best = rows;
  }
  return best;
}

}  // namespace graphopt::mant
