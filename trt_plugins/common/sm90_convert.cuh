// Values of the Hopper linear kernels on their way between memory and registers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace graphopt {

/// Two values of y as one word of T.
__device__ __forceinline__ uint32_t pack(float low, float high, __half) {
  __half2 const pair = __floats2half2_rn(low, high);
  return reinterpret_cast<uint32_t const&>(pair);
}

__device__ __forceinline__ uint32_t pack(float low, float high, __nv_bfloat16) {
  __nv_bfloat162 const pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<uint32_t const&>(pair);
}

__device__ __forceinline__ float2 unpack(uint32_t word, __half) {
  return __half22float2(reinterpret_cast<__half2 const&>(word));
}

__device__ __forceinline__ float2 unpack(uint32_t word, __nv_bfloat16) {
  return __bfloat1622float2(reinterpret_cast<__nv_bfloat162 const&>(word));
}

/// Load what the epilogue needs. Volatile, so that it starts where it is written and ends under the products.
__device__ __forceinline__ float load_early(float const* pointer) {
  float value;
  asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(value) : "l"(pointer));
  return value;
}

}  // namespace graphopt
