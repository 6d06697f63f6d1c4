// A group of keys or values to 4-bit codes and one word, rounding where passes/mant/cache_codes.py rounds.
#pragma once

#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>

#include "attention/mant/params.h"
#include "attention/mant/types.cuh"

namespace graphopt::attention {

static __constant__ MantTables kMant;

constexpr int kEncodeLanes = 8;  // lanes that share a group: lane j has its elements 8 k + j

/// Type id in the lower four bits, an 11-bit scale above them.
__device__ __forceinline__ float scale_of_word(uint32_t word) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(word & 0x7ff0u)));
}

/// The 11-bit number nearest to a scale, ties to even; the scale is not negative.
__device__ __forceinline__ uint32_t encode_scale(float scale) {
  if (isnan(scale)) return kNanScale;
  int const exponent = min(max(static_cast<int>(__float_as_uint(scale) >> 23) - 127, -14), 15);
  float const power = __uint_as_float(static_cast<uint32_t>(kScaleFractionBits - exponent + 127) << 23);
  float const number = rintf(scale * power) + static_cast<float>((exponent + 14) << kScaleFractionBits);
  return static_cast<uint32_t>(fminf(number, static_cast<float>(kInfiniteScale)));
}

/// Sums of eight partial sums as numpy adds them up.
__device__ __forceinline__ float group_sum(float own) {
#pragma unroll
  for (int offset = 1; offset < kEncodeLanes; offset *= 2) {
    own = __fadd_rn(own, __shfl_xor_sync(0xffffffffu, own, offset));
  }
  return own;
}

/// The largest magnitude of a group; NaN where an element is not finite.
template <int kPer>
__device__ __forceinline__ float group_amax(float const (&x)[kPer]) {
  uint32_t bits = 0;
#pragma unroll
  for (int k = 0; k < kPer; ++k) bits = max(bits, __float_as_uint(fabsf(x[k])));
#pragma unroll
  for (int offset = 1; offset < kEncodeLanes; offset *= 2) bits = max(bits, __shfl_xor_sync(0xffffffffu, bits, offset));
  return bits >= 0x7f800000u ? NAN : __uint_as_float(bits);
}

/// Of the magnitudes of a group's elements.
template <int kPer>
__device__ __forceinline__ float squared_error(float const (&x)[kPer], float const (&nearest)[kPer]) {
  float error = 0.0f;
#pragma unroll
  for (int k = 0; k < kPer; ++k) {
    float const off = __fsub_rn(fabsf(x[k]), nearest[k]);
    error = k == 0 ? __fmul_rn(off, off) : __fadd_rn(error, __fmul_rn(off, off));
  }
  return group_sum(error);
}

/// The word of the candidate with the least squared error; the first one's, if no error is a number. `bound` gets its
/// bounds. One candidate after the other in a loop: in decode, where the code runs once, fetching it takes the time.
template <int kPer>
__device__ __forceinline__ uint32_t select_by_trial(float const (&x)[kPer], float amax,
                                                    float (&bound)[kMagnitudes - 1]) {
  float best = 0.0f;
  uint32_t word = 0;
#pragma unroll 1
  for (int c = 0; c < kTrials; ++c) {
    MantTrial const& trial = kMant.trial[c];
    uint32_t const number = encode_scale(__fmul_rn(amax, trial.scale));
    float const scale = scale_of_word(number << 4);
    float nearest[kPer], lower = __fmul_rn(trial.type.magnitude[0], scale), between[kMagnitudes - 1];
#pragma unroll
    for (int k = 0; k < kPer; ++k) nearest[k] = lower;
#pragma unroll
    for (int i = 0; i + 1 < kMagnitudes; ++i) {
      float const value = __fmul_rn(trial.type.magnitude[i + 1], scale);
      between[i] = __fmul_rn(trial.type.bound[i], scale);
#pragma unroll
      for (int k = 0; k < kPer; ++k) nearest[k] = fabsf(x[k]) > between[i] ? value : nearest[k];
    }
    float const error = squared_error(x, nearest);
    bool const better = c == 0 || error < best;
    best = better ? error : best;
    word = better ? number << 4 | static_cast<uint32_t>(trial.id) : word;
#pragma unroll
    for (int i = 0; i + 1 < kMagnitudes; ++i) bound[i] = better ? between[i] : bound[i];
  }
  return word;
}

/// Candidate c: magnitude i of its type is kSlope i + kUnit 2^i, exact.
template <int c>
struct TrialConstants {
  static constexpr int kId = kTrialTypes[c];
  static constexpr float kScale = MantTrial(kId, kTrialShares[c]).scale;
  static constexpr float kUnit = mant_magnitude(kId, 0);
  static constexpr float kSlope = mant_magnitude(kId, 1) - 2 * kUnit;
};

template <class Number>
__device__ __forceinline__ Number pick(int c, Number first, Number second, Number third, Number fourth) {
  return c < 2 ? (c == 0 ? first : second) : (c == 2 ? third : fourth);
}

/// Quantize a group as encode_group does by trial, its four candidates side by side: each eight lanes of a warp have all
/// of x and one candidate. For few groups, which wait for one after the other.
///
/// Returns: the group's word, in all lanes; whether this lane's `codes` are the group's to `chosen`.
template <int kPer>
__device__ __forceinline__ uint32_t encode_group_at_once(float const (&x)[kPer], uint32_t (&codes)[kPer],
                                                         bool& chosen) {
  static_assert(kTrials * kEncodeLanes == 32, "a warp has one group");
  int const own = static_cast<int>(threadIdx.x) % 32 / kEncodeLanes;
  using A = TrialConstants<0>;
  using B = TrialConstants<1>;
  using C = TrialConstants<2>;
  using D = TrialConstants<3>;
  float const share = pick(own, A::kScale, B::kScale, C::kScale, D::kScale);
  float const unit = pick(own, A::kUnit, B::kUnit, C::kUnit, D::kUnit);
  float const slope = pick(own, A::kSlope, B::kSlope, C::kSlope, D::kSlope);
  uint32_t const number = encode_scale(__fmul_rn(group_amax(x), share));
  float const scale = scale_of_word(number << 4);
  float nearest[kPer], lower = 0.0f;
#pragma unroll
  for (int i = 0; i < kMagnitudes; ++i) {
    float const magnitude = fmaf(slope, static_cast<float>(i), unit * static_cast<float>(1 << i));
    float const value = __fmul_rn(magnitude, scale), bound = __fmul_rn((lower + magnitude) / 2, scale);
    lower = magnitude;
#pragma unroll
    for (int k = 0; k < kPer; ++k) {
      bool const above = i > 0 && fabsf(x[k]) > bound;
      nearest[k] = i == 0 || above ? value : nearest[k];
      codes[k] = i == 0 ? (x[k] < 0.0f ? 8u : 0u) : codes[k] + (above ? 1u : 0u);
    }
  }
  float const error = squared_error(x, nearest);
  float best = __shfl_sync(0xffffffffu, error, 0);
  int winner = 0;
#pragma unroll
  for (int c = 1; c < kTrials; ++c) {
    float const other = __shfl_sync(0xffffffffu, error, c * kEncodeLanes);
    winner = other < best ? c : winner;
    best = other < best ? other : best;  // NaN stays
  }
  chosen = own == winner;
  int const id = pick(own, A::kId, B::kId, C::kId, D::kId);
  return __shfl_sync(0xffffffffu, number << 4 | static_cast<uint32_t>(id), winner * kEncodeLanes);
}

/// By the variance of x / max|x| (the authors' rule).
template <int kPer, int kBounds>
__device__ __forceinline__ uint32_t select_by_variance(float const (&x)[kPer], float amax,
                                                       float const (&bounds)[kBounds],
                                                       int const (&types)[kBounds + 1]) {
  constexpr float kSize = kPer * kEncodeLanes;
  float const inverse = amax == 0.0f ? 0.0f : __fdiv_rn(1.0f, amax);
  float sum = 0.0f, squares = 0.0f;
#pragma unroll
  for (int k = 0; k < kPer; ++k) sum = k == 0 ? __fmul_rn(x[k], inverse) : __fadd_rn(sum, __fmul_rn(x[k], inverse));
  float const mean = __fdiv_rn(group_sum(sum), kSize);
#pragma unroll
  for (int k = 0; k < kPer; ++k) {
    float const off = __fsub_rn(__fmul_rn(x[k], inverse), mean), square = __fmul_rn(off, off);
    squares = k == 0 ? square : __fadd_rn(squares, square);
  }
  float const variance = __fdiv_rn(group_sum(squares), kSize - 1.0f);
  int place = 0;
#pragma unroll
  for (int i = 0; i < kBounds; ++i) place += variance >= bounds[i] ? 1 : 0;
  int const type = types[place];
  float const inverse_largest = __fdiv_rn(1.0f, kMant.type[type].largest());
  return encode_scale(__fmul_rn(amax, inverse_largest)) << 4 | static_cast<uint32_t>(type);
}

/// Quantize a group of 8 kPer elements, of which this lane has x[k], element 8 k + lane % 8. Called by whole warps.
///
/// Returns: the group's word; `codes` gets the lane's codes.
template <int kPer>
__device__ __forceinline__ uint32_t encode_group(float const (&x)[kPer], MantSelector selector,
                                                 uint32_t (&codes)[kPer]) {
  float const amax = group_amax(x);
  float bound[kMagnitudes - 1] = {};
  uint32_t word = 0;
  if (selector == MantSelector::kTrial) {
    word = select_by_trial(x, amax, bound);
  } else {
    word = selector == MantSelector::kVariance3
               ? select_by_variance(x, amax, kMant.variance3_bound, kMant.variance3_type)
               : select_by_variance(x, amax, kMant.variance8_bound, kMant.variance8_type);
#pragma unroll
    for (int i = 0; i + 1 < kMagnitudes; ++i) {
      bound[i] = __fmul_rn(kMant.type[word & 15u].bound[i], scale_of_word(word));
    }
  }
#pragma unroll
  for (int k = 0; k < kPer; ++k) {
    codes[k] = x[k] < 0.0f ? 8u : 0u;
#pragma unroll
    for (int i = 0; i + 1 < kMagnitudes; ++i) codes[k] += fabsf(x[k]) > bound[i] ? 1u : 0u;
  }
  return word;
}

/// Write a lane's codes to its group's 4 kPer bytes: byte 16 v + i has the codes of elements 32 v + i and 32 v + 16 + i.
template <int kPer>
__device__ __forceinline__ void store_codes(uint8_t* group, int lane, uint32_t const (&codes)[kPer]) {
#pragma unroll
  for (int k = 0; k < kPer; ++k) {
    if (k % 4 < 2) group[k / 4 * 16 + k % 4 * 8 + lane] = static_cast<uint8_t>(codes[k] | codes[k + 2] << 4);
  }
}

}  // namespace graphopt::attention
