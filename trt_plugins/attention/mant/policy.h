// Shapes of the kernels over a M-ANT cache. Host code, and sizes that kernels share.
#pragma once

#include <cstddef>
#include <cstdint>

namespace graphopt::attention {

constexpr int kMantRows = 8;           // query rows of a decode block: the columns of an mma
constexpr int kMantPage = 64;          // tokens of a page, and channels of a group, of the fast kernel
constexpr int kMantTypeBytes = 16 * 16;       // table of magnitudes
constexpr int kMantPairBytes = 16 * 256 * 4;  // table of pairs of codes

// Decode blocks of a multiprocessor: two leave more registers, and are 7 to 11 % faster than three.
constexpr int kMantResident = 2;

/// Rings and warps of a decode block. kStages: pages that a warp has in flight or at work.
template <int kD, int kStages_>
struct MantDecodeShape {
  static constexpr int kStages = kStages_;
  static constexpr int kWarps = 4;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kTileTokens = kMantPage * kWarps;
  static constexpr int kGroups = kD / kMantPage;             // words of a key
  static constexpr int kPerLane = kD / 8;                    // channels of a lane: those of one row of two in all mma
  static constexpr int kKeyBytes = kMantPage * kD / 2;       // codes of a page's keys; as many of values
  static constexpr int kMetaBytes = kMantPage * kGroups * 2;  // words of a page's keys; as many of values
  static constexpr int kValuePitch = 8 * 32 + 32;            // eight channels of 64 codes, and 32 bytes to change banks
  static constexpr int kValueOffset = kKeyBytes + kMetaBytes;
  static constexpr int kStageBytes = kValueOffset + kPerLane * kValuePitch + kMetaBytes;
  static constexpr int kWarpBytes = kStages * kStageBytes;
  static constexpr size_t kSharedBytes =
      size_t{kMantTypeBytes} + kMantPairBytes + kWarps * kWarpBytes + 4 * kWarps * kMantRows * 2 + 16;
  static_assert(kStageBytes % 16 == 0, "stages are filled 16 bytes at a time");
};

/// Whether decode runs and rotates the queries itself, so that it need not wait for append before it begins. Of 128
/// elements a lane has both halves.
constexpr bool mant_decode_rotates(int64_t head_size, size_t shared_per_block) {
  return head_size == 128 && MantDecodeShape<128, 2>::kSharedBytes <= shared_per_block;
}

}  // namespace graphopt::attention
