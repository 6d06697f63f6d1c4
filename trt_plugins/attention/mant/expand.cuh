// Keys and values of a M-ANT cache, written out as T.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "attention/expanded.cuh"
#include "attention/mant/args.cuh"
#include "attention/mant/encode.cuh"

namespace graphopt::attention {

constexpr int kMantExpandThreads = 256;

/// A block has a page of a sequence and head; groups are those of the cache, 32 or 64.
template <class T>
struct MantPage {
  MantArgs<T> const& args;
  float const (*magnitudes)[kMagnitudes];
  int32_t group, h;
  int64_t head;  // b Hkv + h of the cache
  int32_t page, length;

  __device__ __forceinline__ float value(uint32_t code, uint32_t word) const {
    float const magnitude = magnitudes[word & 15u][code & 7u];
    return __fmul_rn((code & 8u) != 0 ? -magnitude : magnitude, scale_of_word(word));
  }

  /// Code e of packed codes.
  __device__ __forceinline__ static uint32_t code(uint8_t const* codes, int32_t e) {
    return codes[e / 32 * 16 + e % 16] >> (e / 16 % 2 * 4) & 15u;
  }

  __device__ __forceinline__ float key(int32_t token, int32_t channel) const {
    int32_t const d = args.cache.head_size;
    if (token == 0) {
      return __fsub_rn(to_float(args.sink[head * 2 * d + channel]), to_float(args.center[h * d + channel]));
    }
    int64_t const row = head * args.cache.capacity + token;
    uint8_t const* const codes = static_cast<uint8_t const*>(args.cache.k) + row * (d / 2);
    return value(code(codes, channel), args.k_meta[row * (d / group) + channel / group]);
  }

  /// Of token `row` of the page.
  __device__ __forceinline__ float element(int32_t row, int32_t channel) const {
    int32_t const d = args.cache.head_size, token = page * group + row;
    if (token == 0) return to_float(args.sink[head * 2 * d + d + channel]);
    if ((page + 1) * group > length) {
      float const scale = __half2float(args.v_scale[head * group + row]);
      return __fmul_rn(static_cast<float>(args.v_window[(head * group + row) * d + channel]), scale);
    }
    int64_t const place = (head * (args.cache.capacity / group) + page) * d + channel;
    return value(code(static_cast<uint8_t const*>(args.cache.v) + place * (group / 2), row), args.v_meta[place]);
  }
};

/// Grid: pages of the slice's sequences and heads. k and v are [slice.batch, slice.kv_heads, C, D].
template <class T>
__global__ void __launch_bounds__(kMantExpandThreads)
    attention_mant_expand(MantArgs<T> const args, int32_t group, Slice const slice, T* __restrict__ k,
                          T* __restrict__ v) {
  __shared__ float magnitudes[kMantTypes][kMagnitudes];  // constant memory serves one address at a time
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < kMantTypes * kMagnitudes; i += kMantExpandThreads) {
    magnitudes[i / kMagnitudes][i % kMagnitudes] = kMant.type[i / kMagnitudes].magnitude[i % kMagnitudes];
  }
  __syncthreads();
  AttentionArgs<T> const& cache = args.cache;
  int32_t const pages = cache.capacity / group, d = cache.head_size;
  int32_t const page = static_cast<int32_t>(blockIdx.x % static_cast<uint32_t>(pages));
  int32_t const pair = static_cast<int32_t>(blockIdx.x / static_cast<uint32_t>(pages));
  int32_t const b = slice.b + pair / slice.kv_heads, h = slice.h + pair % slice.kv_heads;
  int32_t const length = visible_rows(past_rows(cache.start, b, cache.capacity), cache.seq - 1, cache.capacity);
  if (page * group >= length) return;
  MantPage<T> const from{args, magnitudes, group, h, int64_t{b} * cache.kv_heads + h, page, length};
  int64_t const first = (int64_t{pair} * cache.capacity + page * group) * d;
  // Neighbouring threads have neighbouring channels, so that what they write lies together.
  for (int32_t item = static_cast<int32_t>(threadIdx.x); item < group * d; item += kMantExpandThreads) {
    int32_t const row = item / d, channel = item % d;
    if (page * group + row >= length) break;
    k[first + item] = from_float<T>(from.key(page * group + row, channel));
    v[first + item] = from_float<T>(from.element(row, channel));
  }
}

}  // namespace graphopt::attention
