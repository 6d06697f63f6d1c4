// The types of the M-ANT cache (passes/mant/types.py, MANT_KV) and the candidates of its selectors (cache_codes.py).
#pragma once

#include <cstdint>

namespace graphopt::attention {

constexpr int kMantTypes = 16;
constexpr int kMagnitudes = 8;
constexpr int kInt4Type = 15;  // plain INT4; the others are (a i + 2^i), by a
constexpr int kMantSteps[kInt4Type] = {0, 10, 17, 20, 25, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120};

/// Magnitude i of a type, divided by the power of two at or above the type's largest: exact in float16.
__host__ __device__ constexpr float mant_magnitude(int type, int i) {
  int const step = type == kInt4Type ? 1 : kMantSteps[type];
  int const power = type == kInt4Type ? 0 : 1;
  int const largest = 7 * step + power * 128;
  int divisor = 1;
  while (divisor < largest) divisor *= 2;
  return static_cast<float>(i * step + power * (1 << i)) / static_cast<float>(divisor);
}

/// A type: its magnitudes, and bounds halfway between them.
struct MantType {
  float magnitude[kMagnitudes] = {};
  float bound[kMagnitudes - 1] = {};

  __host__ __device__ constexpr explicit MantType(int type) {
    for (int i = 0; i < kMagnitudes; ++i) magnitude[i] = mant_magnitude(type, i);
    for (int i = 0; i + 1 < kMagnitudes; ++i) bound[i] = (magnitude[i] + magnitude[i + 1]) / 2;
  }
  __host__ __device__ constexpr float largest() const { return magnitude[kMagnitudes - 1]; }
};

/// A candidate of a trial: its type, and the scale of a group whose largest magnitude is 1.
struct MantTrial {
  int id;
  MantType type;
  float scale;

  __host__ __device__ constexpr MantTrial(int id, float share)
      : id(id), type(id), scale(share / mant_magnitude(id, kMagnitudes - 1)) {}
};

constexpr int kTrials = 4;
// The first of the least error wins.
constexpr int kTrialTypes[kTrials] = {1, 3, 6, 13};
constexpr float kTrialShares[kTrials] = {1.0f, 0.95f, 0.95f, 0.95f};

/// What is looked up by numbers that only the device knows.
struct MantTables {
  MantType type[kMantTypes] = {MantType(0),  MantType(1),  MantType(2),  MantType(3), MantType(4),  MantType(5),
                               MantType(6),  MantType(7),  MantType(8),  MantType(9), MantType(10), MantType(11),
                               MantType(12), MantType(13), MantType(14), MantType(15)};
  MantTrial trial[kTrials] = {{kTrialTypes[0], kTrialShares[0]},
                              {kTrialTypes[1], kTrialShares[1]},
                              {kTrialTypes[2], kTrialShares[2]},
                              {kTrialTypes[3], kTrialShares[3]}};
  // Types below each bound of the variance, and above the last.
  float variance3_bound[2] = {0.05f, 0.25f};
  int variance3_type[3] = {0, 4, kInt4Type};
  float variance8_bound[7] = {0.0417f, 0.0797f, 0.122f, 0.1368f, 0.1446f, 0.1528f, 0.1611f};
  int variance8_type[8] = {0, 3, 6, 8, 10, 12, 14, kInt4Type};

  __host__ __device__ constexpr MantTables() {}
};

/// Scales are 11-bit numbers, five bits of exponent and six of fraction: the upper bits of a float16 without its sign.
constexpr int kScaleFractionBits = 6;
constexpr int kInfiniteScale = 31 << kScaleFractionBits;
constexpr int kNanScale = (32 << kScaleFractionBits) - 1;

}  // namespace graphopt::attention
