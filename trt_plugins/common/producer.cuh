// The producers: what is computed from the inputs before it is quantized. All arithmetic is float32.
#pragma once

#include <cstdint>
#include <type_traits>

namespace graphopt {

enum class Norm { kNone, kRms, kLayer };

/// x / (1 + 2^w) by the approximate exponential and reciprocal: relative error below 2^-20. w = inf gives 0.
__device__ __forceinline__ float over_one_plus_exp2(float x, float w) {
  float power, reciprocal;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(w));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(1.0f + power));
  return x * reciprocal;
}

constexpr float kLog2E = 1.4426950408889634f;

// Every activation is x sigmoid(u), which loses nothing to cancellation for negative u. T = float takes the exact
// functions; 16-bit types the approximate ones, whose error their rounding (2^-12 and 2^-9) hides.

struct Silu {
  template <class T>
  __device__ __forceinline__ static float apply(float x) {
    if constexpr (std::is_same_v<T, float>) return x / (1.0f + expf(-x));
    return over_one_plus_exp2(x, -kLog2E * x);
  }
};

/// x Phi(x), Phi the normal distribution function. u = logit Phi(x) = x P(x^2), P fitted on |x| < 5.8: relative error
/// of the result below 2^-13.8 down to 2^-14, the smallest normal half, and below 2^-27.8 in absolute terms beyond.
struct Gelu {
  template <class T>
  __device__ __forceinline__ static float apply(float x) {
    if constexpr (std::is_same_v<T, float>) {
      constexpr float kSqrtHalf = 0.70710678118654752f;
      return 0.5f * x * (1.0f + erff(x * kSqrtHalf));
    }
    float const t = x * x;
    float p = -kLog2E * 1.5387400e-9f;
    p = fmaf(p, t, -kLog2E * -1.4164480e-7f);
    p = fmaf(p, t, -kLog2E * 5.0867389e-6f);
    p = fmaf(p, t, -kLog2E * -7.9841441e-5f);
    p = fmaf(p, t, -kLog2E * -2.2418256e-4f);
    p = fmaf(p, t, -kLog2E * 7.3013966e-2f);
    p = fmaf(p, t, -kLog2E * 1.5955538f);
    return over_one_plus_exp2(x, p * x);
  }
};

/// x/2 (1 + tanh(u/2)), u = sqrt(8/pi) (x + 0.044715 x^3).
struct GeluTanh {
  template <class T>
  __device__ __forceinline__ static float apply(float x) {
    constexpr float kTwoSqrt2OverPi = 1.5957691216057308f;
    constexpr float kCubic = 0.044715f;
    if constexpr (std::is_same_v<T, float>) {
      return x / (1.0f + expf(-kTwoSqrt2OverPi * (x + kCubic * x * x * x)));
    }
    return over_one_plus_exp2(x, x * fmaf(x * x, -kLog2E * kTwoSqrt2OverPi * kCubic, -kLog2E * kTwoSqrt2OverPi));
  }
};

/// kInputs: [M, K] inputs read. value: from those inputs to y, or to what the norm normalizes.
struct Plain {
  static constexpr int kInputs = 1;
  static constexpr Norm kNorm = Norm::kNone;
  template <class T>
  __device__ __forceinline__ static float value(float x, float) {
    return x;
  }
};

struct Sum {
  static constexpr int kInputs = 2;
  static constexpr Norm kNorm = Norm::kNone;
  template <class T>
  __device__ __forceinline__ static float value(float x, float residual) {
    return x + residual;
  }
};

template <Norm kWhich, class Source>
struct Normalized : Source {
  static constexpr Norm kNorm = kWhich;
};

template <class Activation>
struct Activated {
  static constexpr int kInputs = 1;
  static constexpr Norm kNorm = Norm::kNone;
  template <class T>
  __device__ __forceinline__ static float value(float x, float) {
    return Activation::template apply<T>(x);
  }
};

template <class Activation>
struct Gated {
  static constexpr int kInputs = 2;
  static constexpr Norm kNorm = Norm::kNone;
  template <class T>
  __device__ __forceinline__ static float value(float gate, float up) {
    return Activation::template apply<T>(gate) * up;
  }
};

using RmsNorm = Normalized<Norm::kRms, Plain>;
using AddRmsNorm = Normalized<Norm::kRms, Sum>;
using LayerNorm = Normalized<Norm::kLayer, Plain>;
using AddLayerNorm = Normalized<Norm::kLayer, Sum>;

}  // namespace graphopt
