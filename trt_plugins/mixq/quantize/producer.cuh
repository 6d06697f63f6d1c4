// The producers: what is computed from the inputs before it is quantized. All arithmetic is float32.
#pragma once

#include <type_traits>

namespace graphopt::mixq {

enum class Norm { kNone, kRms, kLayer };

/// exp and division at the accuracy that T can show: the approximate forms are good to 2^-20, T = half to 2^-11.
template <class T>
__device__ __forceinline__ float exponential(float x) {
  if constexpr (std::is_same_v<T, float>) return expf(x);
  return __expf(x);
}

template <class T>
__device__ __forceinline__ float quotient(float a, float b) {
  if constexpr (std::is_same_v<T, float>) return a / b;
  return __fdividef(a, b);
}

struct Silu {
  template <class T>
  __device__ __forceinline__ static float apply(float x) {
    return quotient<T>(x, 1.0f + exponential<T>(-x));
  }
};

struct Gelu {
  template <class T>
  __device__ __forceinline__ static float apply(float x) {
    constexpr float kSqrtHalf = 0.70710678118654752f;
    return 0.5f * x * (1.0f + erff(x * kSqrtHalf));
  }
};

/// x/2 (1 + tanh u) is x sigmoid(2u), which loses nothing to cancellation for negative u.
struct GeluTanh {
  template <class T>
  __device__ __forceinline__ static float apply(float x) {
    constexpr float kTwoSqrt2OverPi = 1.5957691216057308f;
    float const u = kTwoSqrt2OverPi * (x + 0.044715f * x * x * x);
    return quotient<T>(x, 1.0f + exponential<T>(-u));
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

}  // namespace graphopt::mixq
