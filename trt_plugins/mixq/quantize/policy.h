// Which quantize kernel runs, and on how many threads. Host code only.
#pragma once

#include <algorithm>
#include <cstdint>

namespace graphopt::mixq {

constexpr int kVecs = 4;              // 16-byte vectors of a row that a thread keeps in registers
constexpr int kLongVecs = 8;          // the same in the kernel for long rows
constexpr int kMaxThreads = 512;      // per row: leaves 128 registers to a thread
constexpr int kWarpRowsPerBlock = 4;  // rows in a block of the one-warp-per-row kernel
constexpr int kRereadThreads = 256;   // of the kernel for rows that are too long or misaligned
constexpr int kThreadsPerMultiprocessor = 2048;

enum class QuantizeKernel {
  kWarpRow,   // a warp per row, no barrier per row
  kBlockRow,  // a block per row
  kLongRow,   // a block per row, twice as much of it in each thread
  kReread,    // a block per row that reads its inputs up to three times, element by element
};

struct QuantizePlan {
  QuantizeKernel kernel;
  int threads;         // per row
  int rows_per_block;  // rows that a block works on at a time
  int64_t blocks;
};

/// Args:
///   rows, cols: M and K.
///   per_vector: elements of T in 16 bytes.
///   aligned: every pointer is a multiple of 16 bytes.
///   multiprocessors: of the device.
inline QuantizePlan plan_quantize(int64_t rows, int64_t cols, int per_vector, bool aligned, int multiprocessors) {
  constexpr int kWarpSize = 32;
  int64_t const vectors = cols / per_vector;
  QuantizePlan plan{QuantizeKernel::kReread, kRereadThreads, 1, 0};
  if (aligned && cols % per_vector == 0 && vectors <= int64_t{kMaxThreads} * kLongVecs) {
    bool const is_long = vectors > int64_t{kMaxThreads} * kVecs;
    int64_t const per_warp = kWarpSize * (is_long ? kLongVecs : kVecs);
    int64_t const warps = (vectors + per_warp - 1) / per_warp;
    plan.kernel = is_long      ? QuantizeKernel::kLongRow
                  : warps == 1 ? QuantizeKernel::kWarpRow
                               : QuantizeKernel::kBlockRow;
    plan.threads = static_cast<int>(warps) * kWarpSize;
    plan.rows_per_block = warps == 1 ? kWarpRowsPerBlock : 1;
  }
  // Blocks stay for several rows where rows are many, so that the outlier mask is built once per block.
  int64_t const resident =
      int64_t{multiprocessors} * (kThreadsPerMultiprocessor / (plan.threads * plan.rows_per_block));
  plan.blocks = std::min((rows + plan.rows_per_block - 1) / plan.rows_per_block, resident);
  return plan;
}

}  // namespace graphopt::mixq
