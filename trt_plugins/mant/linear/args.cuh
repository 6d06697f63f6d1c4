// What the kernels of the M-ANT linears get, and operands whose type is known at run time only.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "common/tensor.h"
#include "common/vec.cuh"
#include "mant/linear/params.h"

namespace graphopt::mant {

constexpr int kTypes = 16;  // type ids, and codes of a type

/// LinearParams for the device.
struct LinearArgs {
  int64_t m;
  int64_t n;
  int32_t k;
  int32_t group;
  int32_t group_shift;  // its logarithm; only the generic kernel takes groups that have none
  int32_t groups;      // ceil(K / group)
  int32_t row_bytes;   // of codes
  int32_t type_bytes;  // of a row of types
  int32_t scales;      // columns of sx
  Decode decode;
  DType dtype;
  void const* __restrict__ x;
  float const* __restrict__ sx;
  int8_t const* __restrict__ codes;
  int8_t const* __restrict__ types;
  __half const* __restrict__ scale;
  void const* __restrict__ table;
  void const* __restrict__ bias;
  void* __restrict__ y;
};

/// Element `i` of an array of T.
__device__ __forceinline__ float load_activation(void const* array, int64_t i, DType dtype) {
  if (dtype == DType::kFloat16) return to_float(static_cast<__half const*>(array)[i]);
  if (dtype == DType::kBFloat16) return to_float(static_cast<__nv_bfloat16 const*>(array)[i]);
  return static_cast<float const*>(array)[i];
}

__device__ __forceinline__ void store_activation(void* array, int64_t i, float value, DType dtype) {
  if (dtype == DType::kFloat16) {
    static_cast<__half*>(array)[i] = from_float<__half>(value);
  } else if (dtype == DType::kBFloat16) {
    static_cast<__nv_bfloat16*>(array)[i] = from_float<__nv_bfloat16>(value);
  } else {
    static_cast<float*>(array)[i] = value;
  }
}

/// The exact form of a type: its values are f (first i + second (2^i - i)).
struct SplitType {
  int32_t first;
  int32_t second;
  float factor;
};

/// Type `id`: a of 0, 5, 10, 17, 20, 30, .., 120, and INT4.
__device__ __forceinline__ SplitType split_type(int id) {
  constexpr int kInt4 = 15;
  if (id == kInt4) return {1, 0, 0.125f};
  int const a = id < 3 ? 5 * id : id == 3 ? 17 : 10 * (id - 2);
  int const largest = 7 * a + 128;
  float const factor = largest <= 128   ? 1.0f / 128
                       : largest <= 256 ? 1.0f / 256
                       : largest <= 512 ? 1.0f / 512
                                        : 1.0f / 1024;
  return {a + 1, 1, factor};
}

}  // namespace graphopt::mant
