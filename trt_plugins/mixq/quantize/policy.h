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

/// Rows whose outliers a block keeps at a time: each of its one-warp rows has its own, other teams' rows alternate.
constexpr int kTeamBuffers = 2;
constexpr int kWarpRowBuffers = kWarpRowsPerBlock;

enum class QuantizeKernel {
  kWarpRow,   // a warp per row, no barrier per row
  kFewRow,    // a block per row, for few rows
  kBlockRow,  // teams of threads in a block, each with a row, which read their next rows ahead into shared memory
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
  bool ahead;            // whether rows are read ahead
  int64_t shared_bytes;  // dynamic shared memory
};

/// Shared memory of an OutlierSet, a multiple of 16 bytes: records [capacity, 1 + buffers] of 16 bytes, sources and
/// places [capacity] and slots [vectors] of 4.
constexpr int64_t outlier_bytes(int64_t vectors, int64_t capacity, int64_t buffers) {
  return 16 * (capacity * (buffers + 1) + (2 * capacity + vectors + 3) / 4);
}

/// Rows that are many are worked on by one block per multiprocessor, which then builds the outlier set and brings gamma
/// and beta to shared memory only once.
inline QuantizePlan plan_quantize(QuantizeProblem const& p, QuantizeDevice const& device) {
  constexpr int64_t kWarpSize = 32;
  constexpr int64_t kReservedShared = 2048;  // per block: the system's, and static
  constexpr int64_t kVectorBytes = 16;
  int64_t const sms = device.multiprocessors;
  int64_t const per_vector = kVectorBytes / p.element_size;
  int64_t const vectors = p.cols / per_vector;
  auto warps_for = [&](int vecs) { return (vectors + kWarpSize * vecs - 1) / (kWarpSize * vecs); };
  auto divide = [](int64_t a, int64_t b) { return (a + b - 1) / b; };

  QuantizePlan const reread{QuantizeKernel::kReread, kRereadThreads, 1, std::min(p.rows, 8 * sms), false, 0};
  bool const few = p.rows <= 2 * sms && vectors <= int64_t{kMaxThreads} * kFewVecs;
  int64_t const warps = warps_for(few ? kFewVecs : kVecs);
  if (!p.aligned || p.cols % per_vector != 0 || warps * kWarpSize > kMaxThreads) return reread;

  QuantizePlan plan{QuantizeKernel::kWarpRow, static_cast<int>(warps * kWarpSize), kWarpRowsPerBlock, 0, false, 0};
  if (warps == 1) {
    plan.shared_bytes = outlier_bytes(vectors, p.capacity, kWarpRowBuffers);
    if (plan.shared_bytes + kReservedShared > device.shared_per_block) return reread;
    int64_t const block_bytes = plan.shared_bytes + kReservedShared;
    int64_t const resident = std::min<int64_t>(kMaxThreads / (plan.threads * plan.rows_per_block),
                                               device.shared_per_multiprocessor / block_bytes);
    plan.blocks = std::min(divide(p.rows, plan.rows_per_block), sms * resident);
    return plan;
  }
  plan.kernel = few ? QuantizeKernel::kFewRow : QuantizeKernel::kBlockRow;
  int64_t const parameter_bytes = few ? 0 : kVectorBytes * kVecs * plan.threads * p.parameters;
  auto bytes = [&](int64_t teams) {
    return parameter_bytes + outlier_bytes(vectors, p.capacity, teams * kTeamBuffers);
  };
  int64_t const most = device.shared_per_block - kReservedShared;
  int64_t teams = few ? 1 : std::min<int64_t>(kMaxThreads / plan.threads, divide(p.rows, sms));
  while (teams > 1 && bytes(teams) > most) --teams;
  if (bytes(teams) > most) return reread;
  plan.rows_per_block = static_cast<int>(teams);
  plan.shared_bytes = bytes(teams);
  plan.blocks = divide(p.rows, teams);
  if (few) return plan;
  plan.blocks = std::min(plan.blocks, sms);
  int64_t const row_bytes = kVectorBytes * p.inputs * kVecs * plan.threads * teams;
  plan.ahead = p.rows > plan.blocks * teams && row_bytes <= most - plan.shared_bytes;
  if (plan.ahead) plan.shared_bytes += row_bytes;
  return plan;
}

}  // namespace graphopt::mixq
