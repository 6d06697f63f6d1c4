// Shapes of the kernels over codes. Host code, and sizes that kernels share.
#pragma once

#include <cstddef>
#include <cstdint>

namespace graphopt::attention {

/// Tables and warps of a decode block over codes of 8 bits.
///   kD: head size. kVector: channels of a code. kHeads: query rows, 1, 2 or 4.
template <int kD, int kVector_, int kHeads_>
struct VqDecodeShape {
  static constexpr int kVector = kVector_;
  static constexpr int kHeads = kHeads_;
  static constexpr int kGroups = kD / kVector;     // codes of a row
  static constexpr int kPlanes = kD / 64;          // words of two channels that a lane has
  static constexpr int kPerLane = 64 / kGroups;    // tokens of a lane, so that a warp's codes are 2 KB
  static constexpr int kTokens = 32 * kPerLane;    // of a warp
  static constexpr int kPairs = (kHeads + 1) / 2;  // words of an entry of the scores' table
  // Rows of 256 bytes: columns of 64 groups fill them, of 32 groups leave half to the second pair of heads.
  static constexpr int kPairStride = kGroups == 64 ? 256 * 256 : 128;
  static constexpr int kScoreBytes = 256 * 256 * (kGroups == 64 ? kPairs : 1);
  static constexpr int kValueBytes = 256 * 256;
  static constexpr int kCodeBytes = kTokens * kGroups;
  static constexpr int kWarpBytes = 2 * kCodeBytes + 16 * kHeads * 4;
  static constexpr int kWarps = kScoreBytes > 256 * 256 ? 8 : 16;  // what the tables leave room for
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kTileTokens = kTokens * kWarps;
  static constexpr size_t kSharedBytes = size_t{kScoreBytes} + kValueBytes + size_t{kWarps} * kWarpBytes + 16;
  static_assert(kGroups == 32 || kGroups == 64, "a lane has one or two groups");
  static_assert(kSharedBytes <= 227 * 1024, "what a block can have on an H100");
  static_assert(kWarps * kHeads * (kD + 2) * 4 <= kScoreBytes, "warps are merged in the scores' table");
};

}  // namespace graphopt::attention
