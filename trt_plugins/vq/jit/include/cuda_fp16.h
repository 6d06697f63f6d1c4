// What kernels need of <cuda_fp16.h>, which NVRTC does not bring.
#pragma once

struct __align__(2) __half {
  unsigned short bits;
};

struct __align__(4) __half2 {
  __half x, y;
};

__device__ __forceinline__ float __half2float(__half value) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
}

__device__ __forceinline__ __half __float2half_rn(float value) {
  __half result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
}

__device__ __forceinline__ float2 __half22float2(__half2 pair) {
  return make_float2(__half2float(pair.x), __half2float(pair.y));
}

__device__ __forceinline__ __half __ldg(__half const* pointer) {
  return {__ldg(reinterpret_cast<unsigned short const*>(pointer))};
}
