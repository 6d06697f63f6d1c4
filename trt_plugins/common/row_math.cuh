// What a row's values go through before a scheme's own work: the residual or the gate, and the norm.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/producer.cuh"
#include "common/squares.cuh"
#include "common/team.cuh"
#include "common/vec.cuh"

namespace graphopt {

/// Statistics of a norm: y = (v - mean) * scale * gamma + beta.
struct Moments {
  float mean;
  float scale;
};

template <class Producer>
__device__ __forceinline__ float normalize(float v, Moments m, float gamma, float beta) {
  if constexpr (Producer::kNorm == Norm::kRms) return v * m.scale * gamma;
  return (v - m.mean) * m.scale * gamma + beta;
}

/// v = T(Producer(v, second)), element by element.
template <class Producer, class T, int kVecs, int kSecond>
__device__ __forceinline__ void combine(Vec<T> (&v)[kVecs], Vec<T> const (&second)[kSecond]) {
#pragma unroll
  for (int i = 0; i < kVecs; ++i) {
    if constexpr (std::is_base_of_v<Plain, Producer>) {
      continue;
    } else if constexpr (std::is_base_of_v<Sum, Producer> && sizeof(T) == 2) {
#pragma unroll
      for (int w = 0; w < 4; ++w) v[i].word[w] = add_pair<T>(v[i].word[w], second[i].word[w]);
    } else {
      float value[Vec<T>::kSize];
#pragma unroll
      for (int e = 0; e < Vec<T>::kSize; ++e) {
        float const other = Producer::kInputs == 2 ? second[i].get(e) : 0.0f;
        value[e] = Producer::template value<T>(v[i].get(e), other);
      }
      v[i].set(value);
    }
  }
}

/// The sum of (v - mean)^2 over this lane's vectors in the row.
template <class T, int kVecs, class Inside>
__device__ __forceinline__ float squares_around(Vec<T> const (&v)[kVecs], float mean, Inside inside) {
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kVecs; ++i) {
    if (!inside(i)) continue;
#pragma unroll
    for (int e = 0; e < Vec<T>::kSize; ++e) {
      float const offset = v[i].get(e) - mean;
      squares = fmaf(offset, offset, squares);
    }
  }
  return squares;
}

/// Elements of 16 bits: both sums in one pass, with one barrier, unless the mean is so far off that their squares
/// cancel; then, and for float32, squares around the mean.
template <class T, int kVecs, class TeamOf, class Inside>
__device__ __forceinline__ Moments layer_moments(Vec<T> const (&v)[kVecs], TeamOf& team, float per_element,
                                                 float epsilon, Inside inside) {
  constexpr float kFar = 16.0f;  // mean^2 over variance: four bits of the float32 sums cancel
  float mean, variance;
  if constexpr (sizeof(T) == 2) {
    float2 const sums = team.sums_of_warps({warp_sum(v), warp_squares(v)});
    mean = sums.x * per_element;
    variance = fmaf(sums.y, per_element, -mean * mean);
    if (mean * mean > kFar * variance) variance = team.sum(squares_around(v, mean, inside)) * per_element;
  } else {
    mean = team.sum_of_warps(warp_sum(v)) * per_element;
    variance = team.sum(squares_around(v, mean, inside)) * per_element;
  }
  return {mean, rsqrtf(variance + epsilon)};
}

/// Statistics of a row of `cols` elements, of which a team holds vectors; those that are not `inside` it are zeros.
template <class Producer, class T, int kVecs, class TeamOf, class Inside>
__device__ __forceinline__ Moments moments(Vec<T> const (&v)[kVecs], TeamOf& team, int32_t cols, float epsilon,
                                           Inside inside) {
  float const per_element = 1.0f / static_cast<float>(cols);
  if constexpr (Producer::kNorm == Norm::kRms) {
    float const squares = team.sum_of_warps(warp_squares(v));
    return {0.0f, rsqrtf(fmaf(squares, per_element, epsilon))};
  } else {
    return layer_moments(v, team, per_element, epsilon, inside);
  }
}

/// v = T((v - mean) * scale * gamma + beta); beta is not looked at unless the norm has one.
template <class Producer, class T>
__device__ __forceinline__ void normalize_vector(Vec<T>& v, Moments m, Vec<T> const& gamma, Vec<T> const& beta) {
  float value[Vec<T>::kSize];
#pragma unroll
  for (int e = 0; e < Vec<T>::kSize; ++e) value[e] = normalize<Producer>(v.get(e), m, gamma.get(e), beta.get(e));
  v.set(value);
}

/// A row of any length and alignment, whose inputs are read again for every pass. x and other are the row's first
/// elements; other, gamma and beta may be null where the producer has none.
template <class T, class Producer>
struct RereadRow {
  T const* x;
  T const* other;
  T const* gamma;
  T const* beta;
  int32_t cols;
  Moments m{0.0f, 0.0f};

  /// What is normalized, or y where there is no norm.
  __device__ __forceinline__ T source(int32_t k) const {
    float const second = Producer::kInputs == 2 ? to_float(other[k]) : 0.0f;
    return from_float<T>(Producer::template value<T>(to_float(x[k]), second));
  }

  /// y; after `measure` if there is a norm.
  __device__ __forceinline__ T produced(int32_t k) const {
    T const v = source(k);
    if constexpr (Producer::kNorm == Norm::kNone) return v;
    float const shift = Producer::kNorm == Norm::kLayer ? to_float(beta[k]) : 0.0f;
    return from_float<T>(normalize<Producer>(to_float(v), m, to_float(gamma[k]), shift));
  }

  /// Learn the statistics that a norm needs. `sum`: null, or where to write what is normalized.
  template <class TeamOf>
  __device__ __forceinline__ void measure(TeamOf& team, float epsilon, T* sum) {
    if constexpr (Producer::kNorm != Norm::kNone) {
      int32_t const lane = static_cast<int32_t>(threadIdx.x), lanes = static_cast<int32_t>(blockDim.x);
      float const count = static_cast<float>(cols);
      float total = 0.0f;
      for (int32_t k = lane; k < cols; k += lanes) {
        T const v = source(k);
        total += to_float(v);
        if (Producer::kInputs == 2 && sum != nullptr) sum[k] = v;
      }
      if constexpr (Producer::kNorm == Norm::kLayer) m.mean = team.sum(total) / count;
      float squares = 0.0f;
      for (int32_t k = lane; k < cols; k += lanes) {
        float const centered = to_float(source(k)) - m.mean;
        squares += centered * centered;
      }
      m.scale = 1.0f / sqrtf(team.sum(squares) / count + epsilon);
    }
  }
};

}  // namespace graphopt
