// Attention of many query rows by the wgmma of Hopper: sizes, and its launch. Host and device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/args.cuh"
#include "attention/policy.h"
#include "common/launch.h"

namespace graphopt::attention {

/// Sizes of a block.
///   kConsumers: warpgroups that multiply, 64 query rows each. kTokens: cached tokens of a tile.
template <class T_, int kD_, int kConsumers_, int kTokens_>
struct Sm90PrefillTraits {
  using T = T_;
  static constexpr int kD = kD_;
  static constexpr int kConsumers = kConsumers_;
  static constexpr int kTokens = kTokens_;
  static_assert(sizeof(T) == 2 && kD % 64 == 0 && kTokens % 64 == 0);
  static constexpr int kRows = 64 * kConsumers;
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr int kReaderWarps = 4 * kConsumers;

  // Together 64512 or 65536 of the 64 K registers of a multiprocessor.
  static_assert(kConsumers == 2 || kConsumers == 3);
  static constexpr int kProducerRegisters = kConsumers == 2 ? 72 : 32;
  static constexpr int kConsumerRegisters = kConsumers == 2 ? 216 : 160;

  static constexpr int kColumns = 64;             // of D in a block of a tile: one swizzle row of 128 bytes
  static constexpr int kBlocks = kD / kColumns;   // of a tile
  static constexpr int kQueryBytes = kRows * kD * 2;
  static constexpr int kTileBytes = kTokens * kD * 2;  // of K or of V
  static constexpr int kBarrierBytes = 256;
  static constexpr int kMaxSharedBytes = 227 * 1024;
  static constexpr int kMostStages = 4;
  static constexpr int kFittingStages = (kMaxSharedBytes - 3 * kQueryBytes - kBarrierBytes) / (2 * kTileBytes);
  static constexpr int kStages = kFittingStages < kMostStages ? kFittingStages : kMostStages;
  static_assert(kStages >= 2);

  // Queries of two items, outputs, keys, values, barriers.
  static constexpr int kOutputOffset = 2 * kQueryBytes;
  static constexpr int kKeyOffset = 3 * kQueryBytes;
  static constexpr int kValueOffset = kKeyOffset + kStages * kTileBytes;
  static constexpr int kBarrierOffset = kValueOffset + kStages * kTileBytes;
  static constexpr int kSharedBytes = kBarrierOffset + kBarrierBytes;
  static_assert(kQueryBytes % 1024 == 0 && kTileBytes % 1024 == 0, "a swizzled tile starts at a multiple of 1024");
};

/// Whether launch_prefill_sm90 takes `args`, see pick_attention for `vectors`.
template <class T>
Status picks_prefill_sm90(AttentionArgs<T> const& args, bool vectors, bool* picked) {
  constexpr int64_t kMaxRows = int64_t{1} << 30;  // row numbers, rounded up to tiles, are int32
  *picked = false;
#ifdef GRAPHOPT_SM90A
  if (sizeof(T) != 2 || pick_attention(int64_t{args.seq} * args.group, vectors) != AttentionKernel::kPrefill ||
      (args.head_size != 64 && args.head_size != 128) ||
      int64_t{args.batch} * args.kv_heads * args.capacity > kMaxRows || int64_t{args.batch} * args.seq > kMaxRows) {
    return Status::kOk;
  }
  return is_sm90(picked);
#else
  static_cast<void>(args), static_cast<void>(vectors), static_cast<void>(kMaxRows);
  return Status::kOk;
#endif
}

/// Enqueue attention of the arguments that it takes; rotates queries where args.cos is given. Uses the first of
/// args.counters, which must be 0.
template <class T>
Status launch_prefill_sm90(AttentionArgs<T> const& args, cudaStream_t stream);

}  // namespace graphopt::attention
