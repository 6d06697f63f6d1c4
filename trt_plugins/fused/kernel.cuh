// Producers by themselves: a row of a norm in the registers of the threads that share it, activations vector by vector.
#pragma once

#include <cstdint>

#include "common/ptx.cuh"
#include "common/row_math.cuh"
#include "common/team.cuh"
#include "common/vec.cuh"
#include "fused/policy.h"

namespace graphopt::fused {

/// FusedParams with the element type known.
template <class T>
struct FusedArgs {
  T const* __restrict__ x;
  T const* __restrict__ other;
  T const* __restrict__ gamma;
  T const* __restrict__ beta;
  T* __restrict__ y;
  T* __restrict__ sum;  // or null
  int64_t rows;
  int32_t cols;
  float epsilon;
};

/// Block: (threads of a row; rows, one unless kOneWarp). Vector i of lane l holds elements from (i * lanes + l) * kSize;
/// vectors past the end of the row hold zeros. Reductions depend on a row's values, so rows share no barrier.
template <class T, class Producer, int kCount, bool kOneWarp>
__global__ void __launch_bounds__(kMostThreads, 1) normalize_rows(FusedArgs<T> const args) {
  static_assert(Producer::kNorm != Norm::kNone);
  using Row = Team<kOneWarp, true>;
  __shared__ float2 scratch[Row::kScratch];
  int64_t const number = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  int32_t const lanes = static_cast<int32_t>(blockDim.x) * Vec<T>::kSize;
  int32_t const first = static_cast<int32_t>(threadIdx.x) * Vec<T>::kSize;
  auto const channel = [&](int i) { return first + i * lanes; };
  auto const inside = [&](int i) { return channel(i) < args.cols; };
  auto const parameter = [&](int i) { return inside(i) ? channel(i) : 0; };
  int64_t const start = number * args.cols;
  auto const write = [&](T* output, Vec<T> const (&v)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (inside(i)) store(output + start + channel(i), v[i]);
    }
  };

  wait_for_predecessor();
  release_successor();
  if (number >= args.rows) return;
  Vec<T> v[kCount], second[Producer::kInputs == 2 ? kCount : 1];
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (inside(i)) v[i] = load_streaming(args.x + start + channel(i));
    if (Producer::kInputs == 2 && inside(i)) second[i] = load_streaming(args.other + start + channel(i));
  }
  // With few rows, gamma and beta are on their way together with the row; with many, other rows hide their latency.
  constexpr bool kTogether = kCount == kFewVecs;
  Vec<T> gamma[kCount], beta[kCount];
#pragma unroll
  for (int i = 0; kTogether && i < kCount; ++i) {
    gamma[i] = load_pinned(args.gamma + parameter(i));
    if constexpr (Producer::kNorm == Norm::kLayer) beta[i] = load_pinned(args.beta + parameter(i));
  }
  combine<Producer>(v, second);
  if (Producer::kInputs == 2 && args.sum != nullptr) write(args.sum, v);
  Row team(scratch);
  Moments const m = moments<Producer>(v, team, args.cols, args.epsilon, inside);
  keep_packed(v);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if constexpr (!kTogether) {
      gamma[i] = load_cached(args.gamma + parameter(i));
      if constexpr (Producer::kNorm == Norm::kLayer) beta[i] = load_cached(args.beta + parameter(i));
    }
    normalize_vector<Producer>(v[i], m, gamma[i], beta[i]);
  }
  write(args.y, v);
}

/// All elements, `vectors` vectors of 16 bytes, as one row.
template <class T, class Producer>
__global__ void __launch_bounds__(kFlatThreads) activate(FusedArgs<T> const args, int64_t const vectors) {
  int64_t const first = int64_t{blockIdx.x} * (kFlatThreads * kFlatVecs) + threadIdx.x;
  auto const at = [&](int i) { return (first + i * kFlatThreads) * Vec<T>::kSize; };
  auto const inside = [&](int i) { return first + i * kFlatThreads < vectors; };
  wait_for_predecessor();
  release_successor();
  Vec<T> v[kFlatVecs], second[Producer::kInputs == 2 ? kFlatVecs : 1];
#pragma unroll
  for (int i = 0; i < kFlatVecs; ++i) {
    if (inside(i)) v[i] = load_streaming(args.x + at(i));
    if (Producer::kInputs == 2 && inside(i)) second[i] = load_streaming(args.other + at(i));
  }
  combine<Producer>(v, second);
#pragma unroll
  for (int i = 0; i < kFlatVecs; ++i) {
    if (inside(i)) store(args.y + at(i), v[i]);
  }
}

/// Any K and any alignment.
template <class T, class Producer>
__global__ void __launch_bounds__(kRereadThreads) produce_reread_rows(FusedArgs<T> const args) {
  using Row = Team<false, true>;
  __shared__ float2 scratch[Row::kScratch];
  wait_for_predecessor();
  release_successor();
  Row team(scratch);
  for (int64_t number = blockIdx.x; number < args.rows; number += gridDim.x) {
    int64_t const start = number * args.cols;
    T const* const other = Producer::kInputs == 2 ? args.other + start : nullptr;
    RereadRow<T, Producer> row{args.x + start, other, args.gamma, args.beta, args.cols};
    row.measure(team, args.epsilon, args.sum == nullptr ? nullptr : args.sum + start);
    for (int32_t k = static_cast<int32_t>(threadIdx.x); k < args.cols; k += kRereadThreads) {
      args.y[start + k] = row.produced(k);
    }
  }
}

}  // namespace graphopt::fused
