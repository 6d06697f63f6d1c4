// What kernels need of <cuda_bf16.h>, which NVRTC does not bring.
#pragma once

struct __align__(2) __nv_bfloat16 {
  unsigned short bits;
};

__device__ __forceinline__ float __bfloat162float(__nv_bfloat16 value) {
  return __uint_as_float(static_cast<unsigned int>(value.bits) << 16);
}

__device__ __forceinline__ __nv_bfloat16 __float2bfloat16_rn(float value) {
  __nv_bfloat16 result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
}

__device__ __forceinline__ __nv_bfloat16 __ldg(__nv_bfloat16 const* pointer) {
  return {__ldg(reinterpret_cast<unsigned short const*>(pointer))};
}
