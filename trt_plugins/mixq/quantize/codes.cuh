// From a row's magnitudes to its scale and codes.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/reduce.cuh"
#include "common/vec.cuh"

namespace graphopt::mixq {

constexpr float kEightBitMax = 127.0f;
constexpr float kFourBitMax = 7.0f;

/// Scale of a row and how its codes are made.
struct RowScale {
  float inverse;  // code_max / amax; 0 for a row of zeros
  bool keep;      // false: the row is not finite (or too small to invert) and all its codes are 0
};

/// code_max: the largest code, 127 or 7.
__device__ __forceinline__ RowScale row_scale(float amax, float code_max) {
  float const inverse = amax == 0.0f ? 0.0f : __fdiv_rn(code_max, amax);
  return {inverse, isfinite(amax) && isfinite(inverse)};
}

/// rint(x * inverse) in the low byte. Adding 1.5 * 2^23 rounds to an integer, ties to even, and leaves it in the low
/// bits in two's complement: two instructions instead of a conversion and a clamp. |x * inverse| <= code_max (1 + 2^-22).
__device__ __forceinline__ uint32_t code(float x, float inverse) {
  constexpr float kRound = 12582912.0f;
  return __float_as_uint(__fadd_rn(__fmul_rn(x, inverse), kRound));
}

__device__ __forceinline__ uint32_t pack_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}

/// Codes of a vector of a row whose scale says `keep`.
template <class T>
struct Codes {
  using Packed = std::conditional_t<Vec<T>::kSize == 8, uint2, uint32_t>;

  __device__ __forceinline__ static Packed make(Vec<T> const& v, RowScale scale) {
    if constexpr (Vec<T>::kSize == 8) {
      return make_uint2(four(v, 0, scale), four(v, 4, scale));
    } else {
      return four(v, 0, scale);
    }
  }

 private:
  __device__ __forceinline__ static uint32_t four(Vec<T> const& v, int first, RowScale scale) {
    uint32_t c[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) c[e] = code(v.get(first + e), scale.inverse);
    return pack_bytes(c[0], c[1], c[2], c[3]);
  }
};

/// Largest magnitudes of the values met so far, in T: rounding is monotonic, so two values of 16 bits cost one
/// instruction and no conversion. NaN wins.
template <class T>
class Magnitude {
 public:
  __device__ __forceinline__ void add(Vec<T> const& v) {
#pragma unroll
    for (int w = 0; w < 4; ++w) max_.word[w % 2] = larger(max_.word[w % 2], v.word[w]);
  }

  __device__ __forceinline__ float value() const {
    uint32_t const word = larger(max_.word[0], max_.word[1]);
    Vec<T> last;
    last.word[0] = word;
    float result = last.get(0);
#pragma unroll
    for (int e = 1; e < Vec<T>::kPerWord; ++e) result = MaxNan::apply(result, last.get(e));
    return result;
  }

 private:
  /// max(a, |b|) of every element of a word.
  __device__ __forceinline__ static uint32_t larger(uint32_t a, uint32_t b) {
    uint32_t result;
    if constexpr (std::is_same_v<T, __half>) {
      asm("{.reg .b32 m; abs.f16x2 m, %2; max.NaN.f16x2 %0, %1, m;}" : "=r"(result) : "r"(a), "r"(b));
    } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      asm("{.reg .b32 m; abs.bf16x2 m, %2; max.NaN.bf16x2 %0, %1, m;}" : "=r"(result) : "r"(a), "r"(b));
    } else {
      result = __float_as_uint(MaxNan::apply(__uint_as_float(a), fabsf(__uint_as_float(b))));
    }
    return result;
  }

  Vec<T> max_;  // words 0 and 1: two chains
};

}  // namespace graphopt::mixq
