// Warpgroup matrix products of Hopper: D [64, N] += A [64, 32 bytes of K] B [N, 32 bytes of K]^T, all by one warpgroup.
//
// A and B lie in shared memory, each row stored along K, in tiles of 128 or 64 bytes of K that the copy engine swizzled
// (CU_TENSOR_MAP_SWIZZLE_128B, _64B). A may lie in registers instead: with lane l of warp w, a[i] is row
// 16 w + l / 4 + 8 (i % 2), bytes 16 (i / 2) + 4 (l % 4) and on. D lies in registers and has one layout for int32 and
// float32: with lane l of warp w, d[4 j + i] is row 16 w + l / 4 + 8 (i / 2), column 8 j + 2 (l % 4) + i % 2.
// Registers are 32-bit words so that an integer sum can become a float sum in place.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-instructions
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace graphopt {

constexpr int kWgmmaRows = 64;        // of A and D
constexpr int kWgmmaStepBytes = 32;   // of K, whatever the type
constexpr int kSwizzleBytes = 128;    // of K in a row of a shared tile

/// What wgmma is told about a tile of rows of kRowBytes, swizzled: address / 16, and the bytes from 8 rows to the next
/// 8. Adding kWgmmaStepBytes / 16 moves along K inside a row.
template <int kRowBytes = kSwizzleBytes>
__device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t shared) {
  static_assert(kRowBytes == 128 || kRowBytes == 64);
  constexpr uint64_t kSwizzle = uint64_t{kRowBytes == 128 ? 1 : 2} << 62;
  constexpr uint64_t kEightRows = uint64_t{8 * kRowBytes / 16} << 32;
  constexpr uint64_t kUnusedWhenSwizzled = uint64_t{1} << 16;
  return kSwizzle | kEightRows | kUnusedWhenSwizzled | ((shared & 0x3ffff) >> 4);
}

/// The same of a tile [K, N] of 16-bit elements, each row stored along N: blocks of 64 elements of N, `block_bytes` from
/// one to the next, each in rows of kSwizzleBytes. A step along K is 16 rows.
__device__ __forceinline__ uint64_t wgmma_columns_descriptor(uint32_t shared, uint32_t block_bytes) {
  constexpr uint64_t kSwizzle = uint64_t{1} << 62;
  constexpr uint64_t kEightRows = uint64_t{8 * kSwizzleBytes / 16} << 32;
  return kSwizzle | kEightRows | uint64_t{block_bytes / 16} << 16 | ((shared & 0x3ffff) >> 4);
}

/// Order register and shared-memory accesses of the warpgroup before its next products.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

/// Wait until at most `kPending` of the latest groups of products are unfinished.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

/// Keep the compiler from moving reads of `d` above, or writes below, this point.
template <int kCount>
__device__ __forceinline__ void wgmma_pin(uint32_t (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(d[i])::"memory");
}

#define GRAPHOPT_REGISTERS_32                                                        \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"              \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define GRAPHOPT_REGISTERS_64 \
  GRAPHOPT_REGISTERS_32 \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define GRAPHOPT_REGISTERS_128 \
  GRAPHOPT_REGISTERS_64 \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95" \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define GRAPHOPT_D_FROM(i)                                                                                      \
  "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3]), "+r"(d[i + 4]), "+r"(d[i + 5]), "+r"(d[i + 6]), \
      "+r"(d[i + 7])
#define GRAPHOPT_D_32 GRAPHOPT_D_FROM(0), GRAPHOPT_D_FROM(8), GRAPHOPT_D_FROM(16), GRAPHOPT_D_FROM(24)
#define GRAPHOPT_D_64 \
  GRAPHOPT_D_32, GRAPHOPT_D_FROM(32), GRAPHOPT_D_FROM(40), GRAPHOPT_D_FROM(48), GRAPHOPT_D_FROM(56)
#define GRAPHOPT_D_128                                                                                             \
  GRAPHOPT_D_64, GRAPHOPT_D_FROM(64), GRAPHOPT_D_FROM(72), GRAPHOPT_D_FROM(80), GRAPHOPT_D_FROM(88),               \
      GRAPHOPT_D_FROM(96), GRAPHOPT_D_FROM(104), GRAPHOPT_D_FROM(112), GRAPHOPT_D_FROM(120)

/// Products for one N. A sum starts anew where `accumulate` is false.
/// Registers of A must keep their values until the product has been waited for. kTransposeW: W lies [K, N], see
/// wgmma_columns_descriptor.
template <int kN>
struct Wgmma;

// N = 2 x registers; a, b, c, d, e, f, g: the operands' numbers, which follow those of the registers.
#define GRAPHOPT_WGMMA_PRODUCTS(N, REGISTERS, T, TYPE, a, b, c, d_, e, f, g)                                         \
    __device__ __forceinline__ static void product(uint32_t (&d)[REGISTERS], uint64_t x, uint64_t w, bool accumulate,\
                                                   T) {                                                              \
      asm volatile(                                                                                                  \
          "{\n.reg .pred add;\nsetp.ne.b32 add, " c ", 0;\n"                                                         \
          "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" GRAPHOPT_REGISTERS_##REGISTERS        \
          "}, " a ", " b ", add, 1, 1, 0, 0;\n}\n"                                                                   \
          : GRAPHOPT_D_##REGISTERS                                                                                   \
          : "l"(x), "l"(w), "r"(static_cast<int>(accumulate)));                                                      \
    }                                                                                                                \
    template <int kTransposeW = 0>                                                                                   \
    __device__ __forceinline__ static void product(uint32_t (&d)[REGISTERS], uint32_t const* x, uint64_t w,          \
                                                   bool accumulate, T) {                                             \
      asm volatile(                                                                                                  \
          "{\n.reg .pred add;\nsetp.ne.b32 add, " f ", 0;\n"                                                         \
          "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" GRAPHOPT_REGISTERS_##REGISTERS        \
          "}, {" a ", " b ", " c ", " d_ "}, " e ", add, 1, 1, " g ";\n}\n"                                          \
          : GRAPHOPT_D_##REGISTERS                                                                                   \
          : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "l"(w), "r"(static_cast<int>(accumulate)),                   \
            "n"(kTransposeW));                                                                                       \
    }

#define GRAPHOPT_WGMMA(N, REGISTERS, a, b, c, d_, e, f, g)                                                           \
  template <>                                                                                                        \
  struct Wgmma<N> {                                                                                                  \
    __device__ __forceinline__ static void s8(uint32_t (&d)[REGISTERS], uint64_t x, uint64_t w, bool accumulate) {   \
      asm volatile(                                                                                                  \
          "{\n.reg .pred add;\nsetp.ne.b32 add, " c ", 0;\n"                                                         \
          "wgmma.mma_async.sync.aligned.m64n" #N "k32.s32.s8.s8 {" GRAPHOPT_REGISTERS_##REGISTERS "}, " a ", " b     \
          ", add;\n}\n"                                                                                              \
          : GRAPHOPT_D_##REGISTERS                                                                                   \
          : "l"(x), "l"(w), "r"(static_cast<int>(accumulate)));                                                      \
    }                                                                                                                \
    __device__ __forceinline__ static void s8(uint32_t (&d)[REGISTERS], uint32_t const* x, uint64_t w,               \
                                              bool accumulate) {                                                     \
      asm volatile(                                                                                                  \
          "{\n.reg .pred add;\nsetp.ne.b32 add, " f ", 0;\n"                                                         \
          "wgmma.mma_async.sync.aligned.m64n" #N "k32.s32.s8.s8 {" GRAPHOPT_REGISTERS_##REGISTERS "}, {" a ", " b    \
          ", " c ", " d_ "}, " e ", add;\n}\n"                                                                       \
          : GRAPHOPT_D_##REGISTERS                                                                                   \
          : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "l"(w), "r"(static_cast<int>(accumulate)));                  \
    }                                                                                                                \
    GRAPHOPT_WGMMA_PRODUCTS(N, REGISTERS, __half, "f16", a, b, c, d_, e, f, g)                                       \
    GRAPHOPT_WGMMA_PRODUCTS(N, REGISTERS, __nv_bfloat16, "bf16", a, b, c, d_, e, f, g)                               \
  };

GRAPHOPT_WGMMA(64, 32, "%32", "%33", "%34", "%35", "%36", "%37", "%38")
GRAPHOPT_WGMMA(128, 64, "%64", "%65", "%66", "%67", "%68", "%69", "%70")
GRAPHOPT_WGMMA(256, 128, "%128", "%129", "%130", "%131", "%132", "%133", "%134")
#undef GRAPHOPT_WGMMA
#undef GRAPHOPT_WGMMA_PRODUCTS
#undef GRAPHOPT_REGISTERS_32
#undef GRAPHOPT_REGISTERS_64
#undef GRAPHOPT_REGISTERS_128
#undef GRAPHOPT_D_FROM
#undef GRAPHOPT_D_32
#undef GRAPHOPT_D_64
#undef GRAPHOPT_D_128

}  // namespace graphopt
