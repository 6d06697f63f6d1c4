// Which quantize kernel runs, and on how many threads. Host code only.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace graphopt::mixq {

constexpr int kVecs = 4;              // 16-byte vectors of a row that a thread keeps in registers
constexpr int kFewVecs = 2;           // the same where rows are too few to fill the device
constexpr int kMaxThreads = 1024;     // per row: leaves 64 registers to a thread
constexpr int kWarpRowsPerBlock = 4;  // rows in a block of the one-warp-per-row kernel
constexpr int kRereadThreads = 256;   // of the kernel for rows that are too long or misaligned
constexpr int kMaxStages = 2;         // rows that a block reads ahead

/// Rows whose outliers a block keeps at a time: each of its one-warp rows has its own, a block's rows alternate.
constexpr int kBlockRowBuffers = 2;
constexpr int kWarpRowBuffers = kWarpRowsPerBlock;

enum class QuantizeKernel {
  kWarpRow,   // a warp per row, no barrier per row
  kFewRow,    // a block per row, for few rows
  kBlockRow,  // a block per row, which reads its next rows ahead into shared memory
  kReread,    // a block per row that reads its inputs up to three times, element by element
};

struct QuantizeProblem {
  int64_t rows;      // M
  int64_t cols;      // K
  int64_t capacity;  // C
  int element_size;  // of T, bytes
  int inputs;        // how many are [M, K]
  int parameters;    // how many are [K]: gamma, beta
  bool aligned;      // every pointer is a multiple of 16 bytes
};

struct QuantizeDevice {
  int multiprocessors;
  int64_t shared_per_block;           // bytes, the most that a kernel may ask for
  int64_t shared_per_multiprocessor;  // bytes
};

struct QuantizePlan {
  QuantizeKernel kernel;
  int threads;         // per row
  int rows_per_block;  // rows that a block works on at a time
  int64_t blocks;
  int stages;            // rows read ahead
  int64_t shared_bytes;  // dynamic shared memory
};

/// Shared memory of an OutlierSet, a multiple of 16 bytes: records [capacity, 1 + buffers] of 16 bytes, sources
/// [capacity] and slots [vectors] of 4.
constexpr int64_t outlier_bytes(int64_t vectors, int64_t capacity, int buffers) {
  return 16 * (capacity * (buffers + 1) + (capacity + vectors + 3) / 4);
}

/// Blocks stay for several rows where rows are many, so that the outlier set is built once per block; there are as many
/// as run at a time, or a last wave would leave multiprocessors idle.
inline QuantizePlan plan_quantize(QuantizeProblem const& p, QuantizeDevice const& device) {
  constexpr int64_t kWarpSize = 32;
  constexpr int64_t kWarps = 32;             // per multiprocessor, at 64 registers a thread
  constexpr int64_t kReservedShared = 2048;  // per block: the system's, and static
  constexpr int64_t kVectorBytes = 16;
  int64_t const sms = device.multiprocessors;
  int64_t const per_vector = kVectorBytes / p.element_size;
  int64_t const vectors = p.cols / per_vector;
  auto warps_for = [&](int vecs) { return (vectors + kWarpSize * vecs - 1) / (kWarpSize * vecs); };

  QuantizePlan plan{QuantizeKernel::kReread, kRereadThreads, 1, 0, 0, 0};
  bool const few = p.rows <= 2 * sms && vectors <= int64_t{kMaxThreads} * kFewVecs;
  int64_t const warps = warps_for(few ? kFewVecs : kVecs);
  bool const one_warp = warps == 1;
  int64_t const set_bytes = outlier_bytes(vectors, p.capacity, one_warp ? kWarpRowBuffers : kBlockRowBuffers);
  if (p.aligned && p.cols % per_vector == 0 && warps * kWarpSize <= kMaxThreads &&
      set_bytes + kReservedShared <= device.shared_per_block) {
    plan.kernel = one_warp ? QuantizeKernel::kWarpRow : few ? QuantizeKernel::kFewRow : QuantizeKernel::kBlockRow;
    plan.threads = static_cast<int>(warps * kWarpSize);
    plan.rows_per_block = one_warp ? kWarpRowsPerBlock : 1;
    plan.shared_bytes = set_bytes;
  }
  int64_t const block_bytes = plan.shared_bytes + kReservedShared;
  int64_t const resident = std::max<int64_t>(1, std::min(kWarps * kWarpSize / (plan.threads * plan.rows_per_block),
                                                         device.shared_per_multiprocessor / block_bytes));
  plan.blocks = std::min((p.rows + plan.rows_per_block - 1) / plan.rows_per_block, sms * resident);
  if (plan.kernel == QuantizeKernel::kBlockRow) {
    // What is not shared memory is cache, which gamma and beta are read from once per row.
    int64_t const room = device.shared_per_multiprocessor - p.cols * p.element_size * p.parameters;
    int64_t const stage_bytes = kVectorBytes * p.inputs * kVecs * plan.threads;
    int64_t const most = std::min(room / resident, device.shared_per_block) - block_bytes;
    int64_t const later_rows = (p.rows - 1) / plan.blocks;
    plan.stages =
        static_cast<int>(std::max<int64_t>(0, std::min({int64_t{kMaxStages}, later_rows, most / stage_bytes})));
    plan.shared_bytes += plan.stages * stage_bytes;
  }
  return plan;
}

}  // namespace graphopt::mixq
