// Appends to a M-ANT cache in one launch: rotates queries into the workspace, encodes keys, moves values through the
// window into pages, and keeps token 0.
#pragma once

#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>

#include "attention/append.cuh"
#include "attention/mant/encode.cuh"

namespace graphopt::attention {

constexpr int kMantAppendThreads = 512;
constexpr int kMantAppendGroups = kMantAppendThreads / kEncodeLanes;  // of a block at a time
constexpr int64_t kMantFewGroups = 4096;  // of keys, up to which each has a warp of its own

/// Blocks are those of values, one for every page that a sequence and head may touch; of keys; then of queries.
template <class T>
struct MantAppendArgs {
  AppendArgs<T> append;
  bool vectors;  // see append_elements
  int32_t group;
  MantSelector selector;
  int32_t pages;         // that new tokens of a sequence may touch
  int32_t value_blocks;  // B Hkv pages
  int32_t key_blocks;
  bool few_keys;         // a warp for each group of them
  int64_t key_groups;  // B S Hkv D / group
  T const* __restrict__ center;
  uint8_t* k;
  uint16_t* k_meta;
  uint8_t* v;
  uint16_t* v_meta;
  int8_t* v_window;
  __half* v_scale;
  T* sink;
};

/// Codes and scale of a value [D], by a warp.
template <class T>
__device__ __forceinline__ void quantize_value(T const* value, int32_t head_size, int8_t* codes, __half* scale) {
  int32_t const lane = static_cast<int32_t>(threadIdx.x) % 32;
  uint32_t bits = 0;
  for (int32_t c = lane; c < head_size; c += 32) bits = max(bits, __float_as_uint(fabsf(to_float(value[c]))));
  bits = __reduce_max_sync(0xffffffffu, bits);
  float const amax = bits >= 0x7f800000u ? NAN : __uint_as_float(bits);
  __half const stored = __float2half_rn(__fdiv_rn(amax, 127.0f));
  float const divisor = __half2float(stored);
  if (lane == 0) *scale = stored;
  for (int32_t c = lane; c < head_size; c += 32) {
    float const ratio = rintf(__fdiv_rn(to_float(value[c]), divisor));
    codes[c] = isnan(ratio) ? int8_t{0} : static_cast<int8_t>(fminf(fmaxf(ratio, -127.0f), 127.0f));
  }
}

/// One page of values of a sequence and head. Only the block of the first page reads the window, and only it writes it.
template <class T, int kPer>
__device__ __forceinline__ void append_values(MantAppendArgs<T> const& args, char* shared) {
  constexpr int kGroup = kPer * kEncodeLanes;
  AppendArgs<T> const& a = args.append;
  int32_t const touched = static_cast<int32_t>(blockIdx.x) % args.pages;
  int32_t const head = static_cast<int32_t>(blockIdx.x) / args.pages;  // b Hkv + h
  int32_t const b = head / a.kv_heads, h = head % a.kv_heads;
  int32_t const past = past_rows(a.start, b, a.capacity), end = min(past + a.seq, a.capacity);
  int32_t const page = past / kGroup + touched, first = page * kGroup;
  int32_t const warp = static_cast<int32_t>(threadIdx.x) / 32, warps = kMantAppendThreads / 32;
  int8_t* const window = args.v_window + int64_t{head} * kGroup * a.head_size;
  __half* const scales = args.v_scale + int64_t{head} * kGroup;
  auto const new_value = [&](int32_t token) {
    return a.v + ((int64_t{b} * a.seq + token - past) * a.kv_heads + h) * a.head_size;
  };

  if (first + kGroup <= end) {
    __half* const page_scales = reinterpret_cast<__half*>(shared);
    int8_t* const page_codes = reinterpret_cast<int8_t*>(page_scales + kGroup);
    for (int32_t row = warp; row < kGroup; row += warps) {
      int8_t* const codes = page_codes + row * a.head_size;
      if (first + row >= past) {
        quantize_value(new_value(first + row), a.head_size, codes, page_scales + row);
        continue;
      }
      int32_t const lane = static_cast<int32_t>(threadIdx.x) % 32;
      for (int32_t c = lane; c < a.head_size; c += 32) codes[c] = window[row * a.head_size + c];
      if (lane == 0) page_scales[row] = scales[row];
    }
    __syncthreads();
    int32_t const lane = static_cast<int32_t>(threadIdx.x) % kEncodeLanes;
    int64_t const place = (int64_t{head} * (a.capacity / kGroup) + page) * a.head_size;  // the page's first channel
    int32_t const step = static_cast<int32_t>(threadIdx.x) / kEncodeLanes;
    // D is a multiple of 32, the channels of a round.
    for (int32_t channel = step; channel < a.head_size; channel += kMantAppendGroups) {
      float x[kPer];
      uint32_t codes[kPer];
#pragma unroll
      for (int k = 0; k < kPer; ++k) {
        int32_t const row = k * kEncodeLanes + lane;
        x[k] = __fmul_rn(static_cast<float>(page_codes[row * a.head_size + channel]), __half2float(page_scales[row]));
      }
      uint32_t const word = encode_group<kPer>(x, args.selector, codes);
      store_codes<kPer>(args.v + (place + channel) * (kGroup / 2), lane, codes);
      if (lane == 0) args.v_meta[place + channel] = static_cast<uint16_t>(word);
    }
    __syncthreads();
  }
  if (touched > 0) return;
  for (int32_t token = max(past, end - kGroup) + warp; token < end; token += warps) {
    int32_t const row = token % kGroup;
    quantize_value(new_value(token), a.head_size, window + row * a.head_size, scales + row);
  }
  if (__ldg(a.start + b) > 0) return;
  T const* const key = a.k + (int64_t{b} * a.seq * a.kv_heads + h) * a.head_size;
  T const* const value = a.v + (int64_t{b} * a.seq * a.kv_heads + h) * a.head_size;
  T* const sink = args.sink + int64_t{head} * 2 * a.head_size;
  for (int32_t c = static_cast<int32_t>(threadIdx.x); c < a.head_size; c += kMantAppendThreads) {
    sink[c] = rotated_element(a, key, table_offset(a, b, 0), c);
    sink[a.head_size + c] = value[c];
  }
}

/// A group of channels of a new key for every eight lanes, or where these are few, for every warp.
template <class T, int kPer>
__device__ __forceinline__ void append_keys(MantAppendArgs<T> const& args, int32_t block) {
  constexpr int kGroup = kPer * kEncodeLanes;
  AppendArgs<T> const& a = args.append;
  int64_t const own = args.few_keys ? int64_t{block} * (kMantAppendThreads / 32) + threadIdx.x / 32
                                    : int64_t{block} * kMantAppendGroups + threadIdx.x / kEncodeLanes;
  int64_t const unit = min(own, args.key_groups - 1);  // all lanes of a warp take part
  int32_t const lane = static_cast<int32_t>(threadIdx.x) % kEncodeLanes, groups = a.head_size / kGroup;
  // B S Hkv is an int32; divisions of 64 bits would take as long as all else.
  uint32_t const row = args.key_groups <= UINT32_MAX ? static_cast<uint32_t>(unit) / static_cast<uint32_t>(groups)
                                                     : static_cast<uint32_t>(unit / groups);
  int32_t const group = static_cast<int32_t>(unit - int64_t{row} * groups);
  uint32_t const kv_heads = static_cast<uint32_t>(a.kv_heads), token = row / kv_heads;
  int32_t const h = static_cast<int32_t>(row % kv_heads);
  int32_t const b = static_cast<int32_t>(token / static_cast<uint32_t>(a.seq));
  int32_t const i = static_cast<int32_t>(token % static_cast<uint32_t>(a.seq));
  int64_t const table = table_offset(a, b, i);
  T const* const key = a.k + int64_t{row} * a.head_size;
  float x[kPer];
  uint32_t codes[kPer];
  int32_t const first = group * kGroup + lane;
  if (a.rotary) {  // asked once, so that all loads are on their way together
#pragma unroll
    for (int k = 0; k < kPer; ++k) {
      int32_t const column = first + k * kEncodeLanes;
      x[k] = to_float(from_float<T>(rotate(key, a.cos + table, a.sin + table, column, a.head_size)));
    }
  } else {
#pragma unroll
    for (int k = 0; k < kPer; ++k) x[k] = to_float(key[first + k * kEncodeLanes]);
  }
#pragma unroll
  for (int k = 0; k < kPer; ++k) {
    x[k] = __fsub_rn(x[k], to_float(args.center[h * a.head_size + first + k * kEncodeLanes]));
  }
  bool chosen = true;
  uint32_t const word = args.few_keys ? encode_group_at_once<kPer>(x, codes, chosen)
                                      : encode_group<kPer>(x, args.selector, codes);
  int32_t const position = past_rows(a.start, b, a.capacity) + i;
  if (own != unit || !chosen || position >= a.capacity) return;
  int64_t const place = ((int64_t{b} * a.kv_heads + h) * a.capacity + position) * groups + group;
  store_codes<kPer>(args.k + place * (kGroup / 2), lane, codes);
  if (lane == 0) args.k_meta[place] = static_cast<uint16_t>(word);
}

/// Shared memory: g halves and g rows of D bytes.
template <class T, int kPer>
__global__ void __launch_bounds__(kMantAppendThreads) attention_mant_append(MantAppendArgs<T> const args) {
  Stamps stamps = append_stamps(args.append);
  wait_for_predecessor();
  release_successor();
  stamps.pass(Phase::kPredecessor);
  extern __shared__ __align__(16) char shared[];
  int32_t const block = static_cast<int32_t>(blockIdx.x);
  if (block < args.value_blocks) {
    append_values<T, kPer>(args, shared);
    return stamps.pass(Phase::kEnd);
  }
  if (block < args.value_blocks + args.key_blocks) {
    append_keys<T, kPer>(args, block - args.value_blocks);
    return stamps.pass(Phase::kEnd);
  }
  int64_t const first = int64_t{block - args.value_blocks - args.key_blocks} * kMantAppendThreads;
  if (args.vectors) {
    append_elements<T, Vec<T>::kSize>(args.append, first + threadIdx.x);
  } else {
    append_elements<T, 1>(args.append, first + threadIdx.x);
  }
}

}  // namespace graphopt::attention
