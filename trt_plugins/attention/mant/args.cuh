// AttentionArgs over a M-ANT cache.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "attention/args.cuh"

namespace graphopt::attention {

template <class T>
struct MantArgs {
  AttentionArgs<T> cache;  // k and v are codes
  uint16_t const* __restrict__ k_meta;
  uint16_t const* __restrict__ v_meta;
  int8_t const* __restrict__ v_window;
  __half const* __restrict__ v_scale;
  T const* __restrict__ sink;
  T const* __restrict__ center;  // [Hkv, D]
};

/// Of decode.
template <class T>
struct MantDecodeArgs {
  MantArgs<T> all;
  bool own_queries;  // whether q is nothing that append writes: rotated here, or not at all
};

}  // namespace graphopt::attention
