// Which kernel runs a producer, and on how many threads. Host code only.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/producer.h"

namespace graphopt::fused {

constexpr int kVecs = 4;             // 16-byte vectors of a row that a thread keeps in registers
constexpr int kFewVecs = 2;          // the same where rows are too few to fill the device
constexpr int kMostThreads = 1024;   // of a row: leaves 64 registers to a thread
constexpr int kWarpRowsPerBlock = 4;  // rows in a block of the one-warp-per-row kernel
constexpr int kFlatVecs = 2;         // vectors of a thread where there is no norm
constexpr int kFlatThreads = 256;
constexpr int kRereadThreads = 256;

enum class FusedKernel {
  kFewRows,  // norms: a block per row, for few rows
  kRows,     // the same for many
  kWarpRows,  // a warp per row, for many short ones
  kFlat,     // activations: rows do not matter
  kReread,   // a block per row that reads its inputs up to three times, element by element
};

struct FusedProblem {
  Producer producer;
  int64_t rows, cols;
  int element_size;  // of T, bytes
  bool aligned;      // every pointer is a multiple of 16 bytes
};

struct FusedPlan {
  FusedKernel kernel;
  int threads;         // of a row; of a block where rows do not matter
  int rows_per_block;  // that a block works on at a time
  int64_t blocks;
};

inline FusedPlan plan_fused(FusedProblem const& p, int multiprocessors) {
  constexpr int64_t kWarpSize = 32, kVectorBytes = 16, kRereadResident = 8;
  auto const divide = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  int64_t const per_vector = kVectorBytes / p.element_size;
  FusedPlan const reread{FusedKernel::kReread, kRereadThreads, 1, std::min(p.rows, kRereadResident * multiprocessors)};
  if (!is_norm(p.producer)) {
    if (!p.aligned || p.rows * p.cols % per_vector != 0) return reread;
    int64_t const vectors = p.rows * p.cols / per_vector;
    return {FusedKernel::kFlat, kFlatThreads, 1, divide(vectors, kFlatThreads * kFlatVecs)};
  }
  int64_t const vectors = p.cols / per_vector;
  bool const few = p.rows <= int64_t{2} * multiprocessors && vectors <= int64_t{kMostThreads} * kFewVecs;
  int64_t const threads = divide(vectors, kWarpSize * (few ? kFewVecs : kVecs)) * kWarpSize;
  if (!p.aligned || p.cols % per_vector != 0 || threads > kMostThreads) return reread;
  if (!few && threads == kWarpSize) {
    return {FusedKernel::kWarpRows, static_cast<int>(threads), kWarpRowsPerBlock, divide(p.rows, kWarpRowsPerBlock)};
  }
  return {few ? FusedKernel::kFewRows : FusedKernel::kRows, static_cast<int>(threads), 1, p.rows};
}

}  // namespace graphopt::fused
