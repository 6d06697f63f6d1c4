// Fast Walsh-Hadamard transform of rows in shared memory, three bits of the index at a time.
//
// A thread block takes a span of consecutive channels: several blocks of H, or one. Of a block that is larger than a
// span, the transform of one part is that of a sum of all parts, each with the sign that H gives it.
#pragma once

#include <cstdint>

#include "common/vec.cuh"
#include "vq/hadamard/params.h"

namespace graphopt::vq {

constexpr int kHadamardThreads = 256;

/// HadamardParams with the element type known.
template <class T>
struct HadamardArgs {
  T const* __restrict__ x;
  int8_t const* __restrict__ signs;
  T* __restrict__ y;
  int32_t k;
  int32_t channels;
  int32_t span;   // channels of a thread block, a power of two
  int32_t parts;  // spans of a block of H, 1 where it is smaller
  int32_t bits;   // of the index that the transform goes over
  float factor;   // block^-1/2
};

/// Where element i lies: rows of 32 begin one bank further, so that powers of two apart do not meet in a bank.
__device__ __forceinline__ int padded(int i) { return i + i / 32; }

/// Transform bits `bit` to bit + kBits - 1 of the index of `span` elements.
template <int kBits>
__device__ __forceinline__ void transform_bits(float* values, int span, int bit) {
  constexpr int kRadix = 1 << kBits;
  for (int i = static_cast<int>(threadIdx.x); i < span / kRadix; i += kHadamardThreads) {
    int const low = i & ((1 << bit) - 1), first = ((i >> bit) << (bit + kBits)) | low;
    float v[kRadix];
#pragma unroll
    for (int j = 0; j < kRadix; ++j) v[j] = values[padded(first + (j << bit))];
#pragma unroll
    for (int width = 1; width < kRadix; width *= 2) {
#pragma unroll
      for (int j = 0; j < kRadix; ++j) {
        if ((j & width) != 0) continue;
        float const a = v[j], b = v[j + width];
        v[j] = a + b;
        v[j + width] = a - b;
      }
    }
#pragma unroll
    for (int j = 0; j < kRadix; ++j) values[padded(first + (j << bit))] = v[j];
  }
  __syncthreads();
}

template <class T>
__global__ void __launch_bounds__(kHadamardThreads) hadamard(HadamardArgs<T> const args) {
  extern __shared__ float values[];
  int const first = static_cast<int>(blockIdx.x) * args.span;
  int const part = static_cast<int>(blockIdx.x) % args.parts, block = first - part * args.span;
  T const* const x = args.x + int64_t{blockIdx.y} * args.k;
  for (int i = static_cast<int>(threadIdx.x); i < args.span; i += kHadamardThreads) {
    float sum = 0.0f;
    for (int other = 0; other < args.parts; ++other) {
      int const channel = block + other * args.span + i;
      if (channel >= args.k) break;
      float const value = to_float(x[channel]) * static_cast<float>(args.signs[channel]);
      sum += __popc(static_cast<unsigned>(part & other)) % 2 != 0 ? -value : value;
    }
    values[padded(i)] = sum;
  }
  __syncthreads();
  int bit = 0;
  for (; bit + 3 <= args.bits; bit += 3) transform_bits<3>(values, args.span, bit);
  if (args.bits - bit == 2) transform_bits<2>(values, args.span, bit);
  if (args.bits - bit == 1) transform_bits<1>(values, args.span, bit);
  T* const y = args.y + int64_t{blockIdx.y} * args.channels;
  for (int i = static_cast<int>(threadIdx.x); i < args.span && first + i < args.channels; i += kHadamardThreads) {
    y[first + i] = from_float<T>(values[padded(i)] * args.factor);
  }
}

}  // namespace graphopt::vq
