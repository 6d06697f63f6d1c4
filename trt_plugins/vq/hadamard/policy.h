// Which kernel transforms, and on how many threads. Host code only.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/producer.h"

namespace graphopt::vq {

constexpr int kSlots = 4;            // 16-byte vectors that a thread keeps in registers
constexpr int kSlotChannels = 256;   // of 16 bits that a warp holds in one slot
constexpr int kWarpChannels = kSlots * kSlotChannels;

/// Of a unit: those of a norm need more registers.
constexpr int max_unit_threads(bool norm) { return norm ? 512 : 1024; }

constexpr int kSpanThreads = 256;  // of the kernel for every other case

struct HadamardProblem {
  Producer producer;
  int64_t rows, k, channels, block;
  int element_size;  // of T, bytes
  bool aligned;      // every pointer is a multiple of 16 bytes, signs of 8
};

struct HadamardPlan {
  bool in_registers;
  int64_t units;     // parts of rows that a team of threads takes, whole rows where there is a norm
  int parts;         // of a row
  int unit_threads;
  int block_units;   // units of a thread block
  int block_warps;   // warps that share a block of H
  int64_t shared_bytes;
};

/// Kernels that hold rows in registers take 16-bit types, blocks of H of 64 to 32768 channels, and no padding. Without
/// a norm, a team takes as little as the transform allows, so that short inputs keep many multiprocessors busy.
inline HadamardPlan plan_hadamard(HadamardProblem const& p, int64_t shared_per_block) {
  constexpr int64_t kLeastBlock = 64, kWarpSize = 32, kBlockThreads = 128;
  constexpr int64_t kThreadBytes = kSlots * 8 * 4;  // float32 values that a thread hands over
  constexpr int64_t kReservedShared = 2048;         // the system's, and static
  auto const divide = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  HadamardPlan plan{};
  if (p.element_size != 2 || !p.aligned || p.k != p.channels || p.block < kLeastBlock) return plan;
  int64_t const shared_by = std::max<int64_t>(1, p.block / kWarpChannels);
  int64_t const unit = is_norm(p.producer) ? p.k : shared_by * kWarpChannels;
  int64_t const warps = divide(divide(unit, kWarpChannels), shared_by) * shared_by;
  int64_t const threads = warps * kWarpSize;
  if (threads > max_unit_threads(is_norm(p.producer))) return plan;
  plan.parts = static_cast<int>(divide(p.k, unit));
  plan.units = p.rows * plan.parts;
  plan.unit_threads = static_cast<int>(threads);
  // Teams of a block meet at its barriers, and a layer norm has one more where a row's mean is far above its deviation.
  plan.block_units = is_layer_norm(p.producer) ? 1 : static_cast<int>(std::max<int64_t>(1, kBlockThreads / threads));
  plan.block_warps = static_cast<int>(shared_by);
  plan.shared_bytes = shared_by > 1 ? plan.block_units * threads * kThreadBytes : 0;
  constexpr int64_t kMostUnits = int64_t{1} << 30;
  plan.in_registers = plan.shared_bytes + kReservedShared <= shared_per_block && plan.units <= kMostUnits;
  return plan;
}

}  // namespace graphopt::vq
