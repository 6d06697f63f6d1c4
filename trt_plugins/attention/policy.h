// Which attention kernel runs, how its blocks are cut, and the memory it asks for. Host code, and sizes that kernels share.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/sm90_grid.h"

namespace graphopt::attention {

constexpr int kDecodeRows = 16;  // query rows of a decode block: those of one mma

/// Shared memory and threads of a decode block.
///   kD: elements of a row. kStages: groups of 16 tokens of K and V that a warp has in flight or at work.
template <int kD, int kStages_>
struct DecodeShape {
  // Four warps with 3 stages of 16 tokens fill half of an H100's shared memory at D = 128: two blocks then keep 128 KB
  // in flight, several times what its latency times bandwidth asks for.
  static constexpr int kStages = kStages_;
  static constexpr int kWarps = kD > 128 ? 2 : 4;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kTileTokens = 16 * kWarps;
  static constexpr int kStageBytes = 2 * 16 * (kD * 2 + (kD % 64 == 0 ? 0 : 16));
  static constexpr int kWarpBytes = kStages * kStageBytes;
  static constexpr int kMergeFloats = kWarps * 8 * kD;
  // Queries of long rows are read from shared memory again for every tile: registers cannot hold them beside outputs.
  static constexpr bool kSharedQueries = kD > 128;
  static constexpr int kQueryBytes = kSharedQueries ? kStageBytes / 2 : 0;
  static constexpr size_t kSharedBytes =
      size_t{kWarps} * kWarpBytes + kQueryBytes + 4 * (kMergeFloats + kWarps * 8 * 2) + 16;
};

/// Queries, tile and shared memory of a prefill block.
template <int kD>
struct PrefillShape {
  // Two mma rows per warp read each fragment of K and V once for both; outputs of longer rows leave room for one.
  static constexpr int kWarps = 4;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kWarpRows = kD > 128 ? 16 : 32;
  static constexpr int kRows = kWarps * kWarpRows;
  // From D = 128 on, scores of 32 tokens leave registers to load fragments of K and V before they are due.
  static constexpr int kTileTokens = kD > 96 ? 32 : 64;
  static constexpr int kPitch = kD * 2 + (kD % 64 == 0 ? 0 : 16);
  // 96 KB at most: what every device of compute capability 8.0 or more can hold. Two stages of K and V.
  static constexpr size_t kSharedBytes = size_t{kRows + 4 * kTileTokens} * kPitch;
};

constexpr size_t kReservedShared = 1024;  // what the driver takes of each block's shared memory

constexpr int kDecodeResident = 2;          // decode blocks of a multiprocessor

/// What the choice depends on.
struct DeviceLimits {
  int multiprocessors;
  size_t shared_per_block;           // with opt-in
  size_t shared_per_multiprocessor;
};

/// Blocks that a multiprocessor holds, as far as shared memory goes; at most `most`.
constexpr int resident_blocks(DeviceLimits const& device, size_t shared_bytes, int most) {
  if (shared_bytes > device.shared_per_block) return 0;
  size_t const fit = device.shared_per_multiprocessor / (shared_bytes + kReservedShared);
  return fit < static_cast<size_t>(most) ? static_cast<int>(fit) : most;
}

/// Blocks of a decode launch at most, whatever the device: workspace is asked for where there may be no device.
constexpr int kMaxDecodeBlocks = 512;

/// Of `blocks`, those that take part in decode where every segment has `tiles` tiles (work.cuh): so many that each has
/// whole segments, or one of equal parts of one, as long as nobody's share grows by more than 1/32. That saves tables
/// of segments and meetings of parts: 132 multiprocessors cut sizes that are powers of two at odd places.
///
/// Args:
///   blocks: no more than all tiles, which are fewer than 2^31.
GRAPHOPT_HOST_DEVICE constexpr uint32_t even_blocks(uint32_t blocks, uint32_t segments, uint32_t tiles) {
  uint32_t even = 0;
  if (segments <= blocks) {
    even = blocks / segments * segments;
  } else {
    uint32_t const each = (segments + blocks - 1) / blocks;
    if (segments % each != 0) return blocks;
    even = segments / each;
  }
  uint32_t const all = segments * tiles, share = (all + blocks - 1) / blocks, even_share = (all + even - 1) / even;
  return even_share <= share + share / 32 ? even : blocks;
}

/// Query rows from which tiles of 128 queries win over decode, which reads the cache again for every 16.
constexpr int64_t kMaxDecodeTiles = 4;

/// Memory for keys and values that were codes; where it does not hold those of all sequences and heads, they take turns.
constexpr int64_t kMaxExpandedBytes = int64_t{256} << 20;

/// Of keys and values of one sequence and head.
constexpr int64_t expanded_head_bytes(int64_t capacity, int64_t head_size, size_t element) {
  return 2 * capacity * head_size * static_cast<int64_t>(element);
}

/// Whether those of all `heads` of all sequences fit.
constexpr bool expands_at_once(int64_t heads, int64_t capacity, int64_t head_size, size_t element) {
  return heads * expanded_head_bytes(capacity, head_size, element) <= kMaxExpandedBytes;
}

constexpr int64_t kMaxVectorHeadSize = 256;  // beyond it, one element at a time

enum class AttentionKernel { kGeneric, kDecode, kPrefill };

/// Args:
///   rows: S times the query heads of a key/value head.
///   vectors: T has 2 bytes, D is a multiple of 8 and at most 256, and every operand is aligned to 16 bytes.
constexpr AttentionKernel pick_attention(int64_t rows, bool vectors) {
  if (!vectors) return AttentionKernel::kGeneric;
  return rows <= kMaxDecodeTiles * kDecodeRows ? AttentionKernel::kDecode : AttentionKernel::kPrefill;
}

}  // namespace graphopt::attention
