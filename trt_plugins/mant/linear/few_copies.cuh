// Stages of the kernel for few tokens, each warp's own, and the copies that fill them:
//
//   stage: W [rows][64 bytes], X [tokens][128 columns], scales [4][rows], types [4][rows / 2 bytes], the latter two for
//   each 32 columns; of groups of 64 and more, every second one is not used.
#pragma once

#include <cstdint>

#include "common/code_pairs.cuh"
#include "common/ptx.cuh"
#include "mant/linear/codes.cuh"
#include "mant/linear/policy.h"
#include "mant/linear/step_codes.cuh"

namespace graphopt::mant {

constexpr int kFewColumns = 128;  // of a stage
constexpr int kFewSlots = 4;      // groups of 32 in a stage

template <FewCodes kCodes, class Shape>
struct FewLayout {
  static constexpr int kXBytes = kCodes == FewCodes::kFloat ? 2 : 1;
  static constexpr int kXRowBytes = kFewColumns * kXBytes;
  static constexpr int kXOffset = Shape::kRows * kFewColumns / 2;
  static constexpr int kScaleBytes = Shape::kRows * 2;  // of a slot
  static constexpr int kScaleOffset = kXOffset + Shape::kTokens * kXRowBytes;
  static constexpr int kTypeBytes = Shape::kRows / 2;
  static constexpr int kTypeOffset = kScaleOffset + kFewSlots * kScaleBytes;
  static constexpr int kStageBytes = kTypeOffset + kFewSlots * kTypeBytes;
  static constexpr int kRingBytes = kStageBytes * Shape::kStages;  // of a warp
  // Tables: of steps, or of numbers' bytes and, where x has one byte and so leaves room for two blocks, of pairs.
  static constexpr bool kSteps = kCodes == FewCodes::kSteps;
  static constexpr bool kPairs = kCodes == FewCodes::kPairs;
  static constexpr int kPairOffset = kFloatEntries * 16;
  static constexpr int kTableBytes =
      kSteps ? kTypes * kStepEntryBytes : kPairOffset + (kPairs ? kTypes * kPairTableBytes : 0);
  static constexpr int shared_bytes(int warps) { return kTableBytes + warps * kRingBytes; }

  /// Offsets in a stage of a chunk of 16 bytes; chunks change places so that a warp's reads meet all banks alike.
  __device__ __forceinline__ static uint32_t w_place(int row, int chunk) {
    return static_cast<uint32_t>(row * 64 + ((chunk ^ (row & 2)) << 4));
  }
  __device__ __forceinline__ static uint32_t x_place(int token, int chunk) {
    int const turned = kXBytes == 2 ? (token & 1) << 1 : (token & 1) | (token & 2) << 1;
    return static_cast<uint32_t>(kXOffset + token * kXRowBytes + ((chunk ^ turned) << 4));
  }

  // A warp's sums on their way to the others: [tokens][kPartPitch] float, so that its stores meet all banks alike.
  static constexpr int kPartPitch = Shape::kRows + 4;
  static constexpr int kPartBytes = Shape::kTokens * kPartPitch * 4;
  static_assert(kPartBytes <= kRingBytes, "sums take the place of the stages");
  static_assert(kStageBytes % 16 == 0);
};

/// What a lane copies into the stages of its warp, from pointers that move from stage to stage.
template <FewCodes kCodes, class Shape>
class FewCopies {
  using Layout = FewLayout<kCodes, Shape>;
  static constexpr int kXChunks = Layout::kXRowBytes / 16;  // of a token
  static constexpr int kScaleChunks = Layout::kScaleBytes / 16;
  static constexpr int kChunks = kScaleChunks + Layout::kTypeBytes / 16;  // of a slot
  static constexpr int kGroupCopies = (kFewSlots * kChunks + 31) / 32;
  static constexpr int kXTokens = 32 / kXChunks;  // that a warp copies at once

 public:
  __device__ __forceinline__ FewCopies(LinearArgs const& args, uint32_t ring, int64_t n0, int64_t m0, int warp,
                                       int lane)
      : args_(args), ring_(ring), w_column_(warp * kFewColumns), lane_(lane) {
    int const row = lane / 4, token = lane / kXChunks;
    w_ = args.codes + (n0 + row) * args.row_bytes + w_column_ / 2 + lane % 4 * 16;
    w_left_ = static_cast<int>(min(args.n - n0, int64_t{Shape::kRows})) - row;
    x_column_ = warp * kFewColumns + lane % kXChunks * (16 / Layout::kXBytes);
    x_ = static_cast<char const*>(args.x) + ((m0 + token) * args.k + x_column_) * Layout::kXBytes;
    tokens_ = static_cast<int>(min(args.m - m0, int64_t{Shape::kTokens}));
#pragma unroll
    for (int i = 0; i < kGroupCopies; ++i) {
      int const chunk = (lane + 32 * i) % kChunks;
      int64_t const n = n0 + chunk * 8, byte = n0 / 2 + (chunk - kScaleChunks) * 16;
      bool const scales = chunk < kScaleChunks;
      of_group_[i] = scales ? reinterpret_cast<char const*>(args.scale + n)
                            : reinterpret_cast<char const*>(args.types + byte);
      group_pitch_[i] = scales ? static_cast<int>(args.n) * 2 : args.type_bytes;
      inside_[i] = scales ? n < args.n : byte < args.type_bytes;
    }
  }

  /// Start copying what the warp's next stage has of W into place `place`; nothing past the end.
  __device__ __forceinline__ void next_w(int place) {
    if (w_column_ >= args_.k) return;
    uint32_t const base = ring_ + place * Layout::kStageBytes;
    copy_codes(base);
    copy_groups(base);
    int const step = static_cast<int>(blockDim.x) / 32 * kFewColumns;
    w_column_ += step;
    w_ += step / 2;
  }

  /// The same of X, zeros past the end. Ends a group of copies.
  __device__ __forceinline__ void next_x(int place) {
    copy_x(ring_ + place * Layout::kStageBytes);
    int const step = static_cast<int>(blockDim.x) / 32 * kFewColumns;
    x_column_ += step;
    x_ += step * Layout::kXBytes;
    cp_async_commit();
  }

 private:
  __device__ __forceinline__ void copy_codes(uint32_t base) const {
    uint32_t const to = base + lane_ / 4 * 64 + ((lane_ % 4 ^ (lane_ / 4 & 2)) << 4);
    bool const inside = w_column_ / 2 + lane_ % 4 * 16 < args_.row_bytes;
#pragma unroll
    for (int i = 0; i < Shape::kRows / 8; ++i) {
      cp_async_16(to + i * 8 * 64, w_ + int64_t{8 * i} * args_.row_bytes, inside && w_left_ > 8 * i);
    }
  }

  /// Scales and types of the stage's groups.
  __device__ __forceinline__ void copy_groups(uint32_t base) const {
#pragma unroll
    for (int i = 0; i < kGroupCopies; ++i) {
      int const item = lane_ + 32 * i, slot = item / kChunks, chunk = item % kChunks;
      if (slot >= kFewSlots || (slot % 2 == 1 && args_.group_shift > 5)) continue;
      // Beyond K the last group, whose types certainly mean something.
      int const group = min((w_column_ + 32 * slot) >> args_.group_shift, args_.groups - 1);
      uint32_t const to = chunk < kScaleChunks
                              ? Layout::kScaleOffset + slot * Layout::kScaleBytes + chunk * 16
                              : Layout::kTypeOffset + slot * Layout::kTypeBytes + (chunk - kScaleChunks) * 16;
      cp_async_16(base + to, of_group_[i] + int64_t{group} * group_pitch_[i], inside_[i]);
    }
  }

  __device__ __forceinline__ void copy_x(uint32_t base) const {
    bool const inside = x_column_ < args_.k;
#pragma unroll
    for (int i = 0; i < Shape::kTokens / kXTokens; ++i) {
      int const token = lane_ / kXChunks + i * kXTokens;
      if (tokens_ <= i * kXTokens) break;
      cp_async_16(base + Layout::x_place(token, lane_ % kXChunks),
                  x_ + int64_t{i * kXTokens * Layout::kXBytes} * args_.k, inside && token < tokens_);
    }
  }

  LinearArgs const& args_;
  uint32_t const ring_;
  int const lane_;
  int w_column_;         // of the next stage
  int w_left_;           // rows of W from this lane's on
  int x_column_;         // of this lane's
  int tokens_;
  int8_t const* w_;
  char const* x_;
  char const* of_group_[kGroupCopies];  // of group 0
  int group_pitch_[kGroupCopies];       // bytes to the next group
  bool inside_[kGroupCopies];
};

}  // namespace graphopt::mant
