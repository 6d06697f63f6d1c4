// Keys and values of a M-ANT cache, written out as T.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "attention/expanded.cuh"
#include "attention/mant/args.cuh"
#include "attention/mant/codes.cuh"
#include "attention/mant/policy.h"

namespace graphopt::attention {

constexpr int kMantExpandThreads = 256;

/// A block has a page of a sequence and head; groups are those of the cache, 32 or 64.
template <class T>
struct MantPage {
  MantArgs<T> const& args;
  char const* tables;  // of the types, in shared memory
  int32_t group, h;
  int64_t head;  // b Hkv + h of the cache
  int32_t page, length;
  T* k;  // [group, D]
  T* v;

  __device__ __forceinline__ int32_t size() const { return args.cache.head_size; }
  /// The exact key of token 0, followed by its value.
  __device__ __forceinline__ T const* sink() const { return args.sink + head * 2 * size(); }

  /// Four codes in the lower half of `codes`: the first and the third to `even`, the others to `odd`.
  __device__ __forceinline__ static void decode(MantTable const& table, uint32_t codes, float scale, float2& even,
                                                float2& odd) {
    uint32_t pair[2];
    table.decode(codes, codes & 0x7777u, pair[0], pair[1]);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float2 const magnitude = __half22float2(*reinterpret_cast<__half2 const*>(&pair[i]));
      (i == 0 ? even : odd) = {__fmul_rn(magnitude.x, scale), __fmul_rn(magnitude.y, scale)};
    }
  }

  /// 16 neighbouring elements.
  __device__ __forceinline__ static void write(T* place, float2 const (&x)[8]) {
#pragma unroll
    for (int at = 0; at < 16; at += Vec<T>::kSize) {
      float out[Vec<T>::kSize];
#pragma unroll
      for (int e = 0; e < Vec<T>::kSize; ++e) out[e] = (at + e) % 2 == 0 ? x[(at + e) / 2].x : x[(at + e) / 2].y;
      Vec<T> rounded;
      rounded.set(out);
      store(place + at, rounded);
    }
  }

  /// 32 channels of a key of the page.
  __device__ __forceinline__ void write_key(int32_t row, int32_t chunk) const {
    int32_t const token = page * group + row, column = chunk * 32;
    T* const place = k + row * size() + column;
    if (token >= length) return;
    if (token == 0) {
      T const* const center = args.center + h * size() + column;
      for (int e = 0; e < 32; ++e) {
        place[e] = from_float<T>(__fsub_rn(to_float(sink()[column + e]), to_float(center[e])));
      }
      return;
    }
    int64_t const at = head * args.cache.capacity + token;
    uint32_t const word = args.k_meta[at * (size() / group) + column / group];
    uint4 const codes = load_codes<uint4>(static_cast<uint8_t const*>(args.cache.k) + at * (size() / 2) + column / 2);
    uint32_t const words[4] = {codes.x, codes.y, codes.z, codes.w};
    MantTable const table(tables, word);
    float const scale = scale_of_word(word);
    float2 low[8], high[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) decode(table, words[j / 2] >> (j % 2 * 16), scale, low[j], high[j]);
    write(place, low);
    write(place + 16, high);
  }

  /// Two neighbouring channels of 16 values of a complete page: eight tokens, and those 16 tokens later.
  __device__ __forceinline__ void write_values(int32_t pair, int32_t part) const {
    int32_t const column = pair * 2, row = part / 2 * 32 + part % 2 * 8;
    int64_t const at = (head * (args.cache.capacity / group) + page) * size() + column;
    float2 low[2][4], high[2][4];
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      uint32_t const word = args.v_meta[at + c];
      uint8_t const* const codes = static_cast<uint8_t const*>(args.cache.v) + (at + c) * (group / 2) + part * 8;
      uint2 const eight = load_codes<uint2>(codes);
      MantTable const table(tables, word);
      float const scale = scale_of_word(word);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        decode(table, (j < 2 ? eight.x : eight.y) >> (j % 2 * 16), scale, low[c][j], high[c][j]);
      }
    }
    T* const place = v + row * size() + column;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      write_pair(place + 2 * j * size(), low[0][j].x, low[1][j].x);
      write_pair(place + (2 * j + 1) * size(), low[0][j].y, low[1][j].y);
      write_pair(place + (2 * j + 16) * size(), high[0][j].x, high[1][j].x);
      write_pair(place + (2 * j + 17) * size(), high[0][j].y, high[1][j].y);
    }
    if (page == 0 && row == 0) place[0] = sink()[size() + column], place[1] = sink()[size() + column + 1];
  }

  __device__ __forceinline__ static void write_pair(T* place, float first, float second) {
    if constexpr (sizeof(T) == 2) {
      *reinterpret_cast<uint32_t*>(place) = round_pair<T>(first, second);
    } else {
      *reinterpret_cast<float2*>(place) = {first, second};
    }
  }

  /// A value of a page that is not complete.
  __device__ __forceinline__ void write_waiting(int32_t row, int32_t channel) const {
    T* const place = v + row * size() + channel;
    if (page * group + row == 0) {
      *place = sink()[size() + channel];
      return;
    }
    float const scale = __half2float(args.v_scale[head * group + row]);
    *place =
        from_float<T>(__fmul_rn(static_cast<float>(args.v_window[(head * group + row) * size() + channel]), scale));
  }

 private:
  /// Rows of codes are aligned to 16 bytes where the cache is.
  template <class Vector>
  __device__ __forceinline__ static Vector load_codes(uint8_t const* from) {
    Vector codes;
    if (reinterpret_cast<uintptr_t>(from) % sizeof(Vector) == 0) return *reinterpret_cast<Vector const*>(from);
    for (size_t i = 0; i < sizeof(Vector); ++i) reinterpret_cast<uint8_t*>(&codes)[i] = from[i];
    return codes;
  }
};

/// Grid: pages of the slice's sequences and heads. k and v are [slice.batch, slice.kv_heads, C, D].
template <class T>
__global__ void __launch_bounds__(kMantExpandThreads)
    attention_mant_expand(MantArgs<T> const args, int32_t group, Slice const slice, T* __restrict__ k,
                          T* __restrict__ v) {
  __shared__ __align__(16) char tables[kMantTypeBytes];
  AttentionArgs<T> const& cache = args.cache;
  int32_t const pages = cache.capacity / group, d = cache.head_size, thread = static_cast<int32_t>(threadIdx.x);
  int32_t const page = static_cast<int32_t>(blockIdx.x % static_cast<uint32_t>(pages));
  int32_t const pair = static_cast<int32_t>(blockIdx.x / static_cast<uint32_t>(pages));
  int32_t const b = slice.b + pair / slice.kv_heads, h = slice.h + pair % slice.kv_heads;
  int32_t const length = visible_rows(past_rows(cache.start, b, cache.capacity), cache.seq - 1, cache.capacity);
  if (page * group >= length) return;
  fill_mant_tables(tables);
  __syncthreads();
  int64_t const first = (int64_t{pair} * cache.capacity + page * group) * d;
  MantPage<T> const to{args, tables, group, h, int64_t{b} * cache.kv_heads + h, page, length, k + first, v + first};
  for (int32_t item = thread; item < group * (d / 32); item += kMantExpandThreads) {
    to.write_key(item / (d / 32), item % (d / 32));
  }
  if ((page + 1) * group <= length) {
    // Neighbouring threads have neighbouring channels, so that what they write lies together.
    for (int32_t item = thread; item < d / 2 * (group / 16); item += kMantExpandThreads) {
      to.write_values(item % (d / 2), item / (d / 2));
    }
    return;
  }
  for (int32_t item = thread; item < (length - page * group) * d; item += kMantExpandThreads) {
    to.write_waiting(item / d, item % d);
  }
}

}  // namespace graphopt::attention
