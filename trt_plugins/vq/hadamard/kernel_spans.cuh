// Any K, alignment and block: values of a span in shared memory, three bits of the index at a time.
//
// A thread block takes a span of consecutive channels: several blocks of H, or one. Of a block that is larger than a
// span, the transform of one part is that of a sum of all parts, each with the sign that H gives it.
#pragma once

#include <cstdint>

#include "common/ptx.cuh"
#include "common/row_math.cuh"
#include "common/team.cuh"
#include "common/vec.cuh"
#include "vq/hadamard/args.cuh"
#include "vq/hadamard/policy.h"

namespace graphopt::vq {

/// How a row of HadamardArgs is divided.
struct SpanGrid {
  int32_t span;   // channels of a thread block, a power of two
  int32_t parts;  // spans of a block of H, 1 where it is smaller
};

/// Where element i lies: rows of 32 begin one bank further, so that powers of two apart do not meet in a bank.
__device__ __forceinline__ int padded(int i) { return i + i / 32; }

/// Transform bits `bit` to bit + kBits - 1 of the index of `span` elements.
template <int kBits>
__device__ __forceinline__ void transform_bits(float* values, int span, int bit) {
  constexpr int kRadix = 1 << kBits;
  for (int i = static_cast<int>(threadIdx.x); i < span / kRadix; i += kSpanThreads) {
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

/// Every span of a row that a norm goes before measures the whole row.
template <class T, class Producer>
__global__ void __launch_bounds__(kSpanThreads) hadamard_spans(HadamardArgs<T> const args, SpanGrid const grid) {
  extern __shared__ float values[];
  using Block = Team<false, true>;
  __shared__ float2 scratch[Block::kScratch];
  wait_for_predecessor();
  release_successor();
  int const first = static_cast<int>(blockIdx.x) * grid.span;
  int const part = static_cast<int>(blockIdx.x) % grid.parts, block = first - part * grid.span;
  int64_t const start = int64_t{blockIdx.y} * args.k;
  T const* const other_input = Producer::kInputs == 2 ? args.other + start : nullptr;
  RereadRow<T, Producer> row{args.x + start, other_input, args.gamma, args.beta, args.k};
  Block team(scratch);
  row.measure(team, args.epsilon, args.sum == nullptr || blockIdx.x != 0 ? nullptr : args.sum + start);
  for (int i = static_cast<int>(threadIdx.x); i < grid.span; i += kSpanThreads) {
    float sum = 0.0f;
    for (int other = 0; other < grid.parts; ++other) {
      int const channel = block + other * grid.span + i;
      if (channel >= args.k) break;
      T const y = row.produced(channel);
      if (other == part && args.y != nullptr) args.y[start + channel] = y;
      float const value = to_float(y) * static_cast<float>(args.signs[channel]);
      sum += __popc(static_cast<unsigned>(part & other)) % 2 != 0 ? -value : value;
    }
    values[padded(i)] = sum;
  }
  __syncthreads();
  int bit = 0;
  int const bits = min(args.bits, 31 - __clz(grid.span));
  for (; bit + 3 <= bits; bit += 3) transform_bits<3>(values, grid.span, bit);
  if (bits - bit == 2) transform_bits<2>(values, grid.span, bit);
  if (bits - bit == 1) transform_bits<1>(values, grid.span, bit);
  T* const z = args.z + int64_t{blockIdx.y} * args.channels;
  for (int i = static_cast<int>(threadIdx.x); i < grid.span && first + i < args.channels; i += kSpanThreads) {
    z[first + i] = from_float<T>(values[padded(i)] * args.factor);
  }
}

}  // namespace graphopt::vq
