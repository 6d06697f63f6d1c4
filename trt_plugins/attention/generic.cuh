// Attention of any type, head size and alignment, element by element: correct, not fast.
#pragma once

#include <cmath>
#include <cstdint>

#include "attention/args.cuh"
#include "attention/merge.cuh"
#include "common/reduce.cuh"

namespace graphopt::attention {

constexpr int kGenericWarps = 4;

/// A block per (new token, query head, sequence); its warps take cached tokens in turn. Shared memory: q and the warps'
/// outputs, (1 + kGenericWarps) D floats.
template <class T>
__global__ void __launch_bounds__(32 * kGenericWarps) attention_generic(AttentionArgs<T> const args) {
  extern __shared__ float memory[];
  __shared__ float maxima[kGenericWarps], sums[kGenericWarps];
  int32_t const d = args.head_size;
  int32_t const lane = static_cast<int32_t>(threadIdx.x) % 32, warp = static_cast<int32_t>(threadIdx.x) / 32;
  int32_t const heads = args.kv_heads * args.group;
  int64_t const token = int64_t{blockIdx.x} / heads;
  int32_t const head = static_cast<int32_t>(blockIdx.x % static_cast<uint32_t>(heads)), h = head / args.group;
  int32_t const b = static_cast<int32_t>(token / args.seq), i = static_cast<int32_t>(token % args.seq);
  int64_t const own = row_offset(args, b, h, i * args.group + head % args.group);
  float* q = memory;
  float* output = memory + (1 + warp) * d;
  for (int32_t c = static_cast<int32_t>(threadIdx.x); c < d; c += 32 * kGenericWarps) q[c] = to_float(args.q[own + c]);
  for (int32_t c = lane; c < d; c += 32) output[c] = 0.0f;
  __syncthreads();

  int64_t const first = (int64_t{b} * args.kv_heads + h) * args.capacity * d;
  T const* const keys = static_cast<T const*>(args.k) + first;
  T const* const values = static_cast<T const*>(args.v) + first;
  int32_t const visible = visible_rows(past_rows(args.start, b, args.capacity), i, args.capacity);
  float m = -INFINITY, sum = 0.0f;
  for (int32_t j = warp; j < visible; j += kGenericWarps) {
    float dot = 0.0f;
    for (int32_t c = lane; c < d; c += 32) dot += q[c] * to_float(keys[int64_t{j} * d + c]);
    float const score = warp_reduce<Add>(dot) * args.scale_log2;
    float const grown = fmaxf(m, score), origin = usable_max(grown);
    float const scale = exp2f(m - origin), weight = exp2f(score - origin);
    m = grown;
    sum = sum * scale + weight;
    for (int32_t c = lane; c < d; c += 32) {
      output[c] = output[c] * scale + weight * to_float(values[int64_t{j} * d + c]);
    }
  }
  if (lane == 0) maxima[warp] = m, sums[warp] = sum;
  __syncthreads();
  float total_max = -INFINITY, total = 0.0f;
  for (int w = 0; w < kGenericWarps; ++w) total_max = fmaxf(total_max, maxima[w]);
  float const origin = usable_max(total_max);
  for (int w = 0; w < kGenericWarps; ++w) total += sums[w] * exp2f(maxima[w] - origin);
  for (int32_t c = static_cast<int32_t>(threadIdx.x); c < d; c += 32 * kGenericWarps) {
    float value = 0.0f;
    for (int w = 0; w < kGenericWarps; ++w) value += memory[(1 + w) * d + c] * exp2f(maxima[w] - origin);
    args.y[own + c] = from_float<T>(value / total);
  }
}

}  // namespace graphopt::attention
