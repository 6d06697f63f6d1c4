// Shapes of the kernels over codes. Host code, and sizes that kernels share.
#pragma once

#include <cstddef>
#include <cstdint>

namespace graphopt::attention {

/// Tables and warps of a decode block over codes of 8 bits, one query row.
///   kD: head size. kVector: channels of a code.
template <int kD, int kVector_>
struct VqDecodeShape {
  static constexpr int kVector = kVector_;
  static constexpr int kGroups = kD / kVector;     // codes of a row
  static constexpr int kPlanes = kD / 64;          // words of two channels that a lane has
  static constexpr int kPerLane = 64 / kGroups;    // tokens of a lane, so that a warp's codes are 2 KB
  static constexpr int kTokens = 32 * kPerLane;    // of a warp
  static constexpr int kScoreBytes = 256 * 256;    // rows of 256 bytes
  static constexpr int kValueBytes = 256 * 256;
  static constexpr int kCodeBytes = kTokens * kGroups;
  static constexpr int kWarpBytes = 2 * kCodeBytes + 16 * 4;
  static constexpr int kWarps = 16;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kTileTokens = kTokens * kWarps;
  static constexpr size_t kSharedBytes = size_t{kScoreBytes} + kValueBytes + size_t{kWarps} * kWarpBytes + 16;
  static_assert(kGroups == 32 || kGroups == 64, "a lane has one or two groups");
  static_assert(kSharedBytes <= 227 * 1024, "what a block can have on an H100");
  static_assert(kWarps * (kD + 2) * 4 <= kScoreBytes, "warps are merged in the scores' table");
};

constexpr int kGroupedVqRows = 4;

/// The same for up to four query rows, whose products stand in one entry of the scores' table.
template <int kD, int kVector_>
struct GroupedVqShape {
  static constexpr int kVector = kVector_;
  static constexpr int kGroups = kD / kVector;
  // Of a warp. Fewer leave room for more warps, where the tables of 64 groups leave little of it.
  static constexpr int kTokens = kGroups == 64 ? 16 : 32;
  static constexpr int kScoreBytes = kGroups / 32 * 256 * 256;  // planes of 32 groups
  static constexpr int kValueBytes = 256 * 256;
  static constexpr int kCodeBytes = kTokens * kGroups;
  static constexpr int kWarpBytes = 2 * kCodeBytes;
  static constexpr int kWarps = 16;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kTileTokens = kTokens * kWarps;
  static constexpr size_t kSharedBytes = size_t{kScoreBytes} + kValueBytes + size_t{kWarps} * kWarpBytes + 16;
  static_assert(kGroups == 32 || kGroups == 64, "a lane has whole words of codes");
  static_assert(kSharedBytes <= 227 * 1024, "what a block can have on an H100");
};

}  // namespace graphopt::attention
