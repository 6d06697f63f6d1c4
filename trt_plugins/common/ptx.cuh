// One wrapper per instruction. https://docs.nvidia.com/cuda/parallel-thread-execution
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace graphopt {

__device__ __forceinline__ uint32_t shared_address(void const* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

/// Wait until the kernel before has ended and its writes can be seen; see Start::kEarly (launch.h).
__device__ __forceinline__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Let a kernel launched after this one with Start::kEarly start once all blocks of this one have come here or ended.
__device__ __forceinline__ void release_successor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Bring `bytes`, a multiple of 16, from an address that is one too, into L2. Right before wait_for_predecessor, too:
/// what that kernel still writes arrives there.
__device__ __forceinline__ void prefetch_bytes(void const* pointer, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(pointer), "r"(bytes) : "memory");
#endif
}

/// Bring the line of an address into L2.
__device__ __forceinline__ void prefetch_line(void const* pointer) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(pointer) : "memory");
}

/// Add to a number in global memory and return what it was: what this thread has written, or seen written, before can
/// be seen by whoever acquires the sum, on the whole device, and the other way round.
__device__ __forceinline__ int32_t atomic_add_acq_rel(int32_t* pointer, int32_t value) {
  int32_t before;
  asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], %2;" : "=r"(before) : "l"(pointer), "r"(value) : "memory");
  return before;
}

/// Bring the line of an address of two bytes into L1, where __ldg finds it.
__device__ __forceinline__ void touch_line(void const* pointer) {
  asm volatile("{\n.reg .b16 unused;\nld.global.nc.u16 unused, [%0];\n}\n" ::"l"(pointer));
}

/// Byte i is chosen by nibble i of `select`: its lower three bits are the number of a byte of (high, low), its top bit
/// asks for eight copies of that byte's sign instead. __byte_perm ignores the top bit.
__device__ __forceinline__ uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t select) {
  uint32_t bytes;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(low), "r"(high), "r"(select));
  return bytes;
}

/// Copy 16 bytes from global to shared memory, or write 16 zero bytes where `valid` is false (nothing is read then).
__device__ __forceinline__ void cp_async_16(uint32_t shared, void const* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/// Wait until at most `kPending` of this thread's latest groups are in flight.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

/// Load four 8 x 16-byte matrices; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared)
               : "memory");
}

/// The same with each matrix transposed, for elements of 16 bits: lane l gets rows 2 (l % 4) and the next of column l / 4.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared)
               : "memory");
}

/// x >> 16 by a product, as the units of shifts are those of byte permutations. `two_16`: 2^16, which the compiler must
/// not know (opaque in vec.cuh).
__device__ __forceinline__ uint32_t upper_half(uint32_t x, uint32_t two_16) {
  uint64_t shifted;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(shifted) : "r"(x), "r"(two_16));
  return static_cast<uint32_t>(shifted >> 32);
}

// The products below all take 32 bytes of K: A is 16 rows, B 8 rows, each row stored along K. Per lane,
// g = lane / 4, t = lane % 4: a[0] bytes 4t.. of row g, a[1] of row g + 8, a[2] and a[3] the same 16 bytes on; b[0] and
// b[1] bytes 4t.. and 16 + 4t.. of row g; c[0..1] row g, columns 2t and 2t + 1, c[2..3] row g + 8.

__device__ __forceinline__ void mma_s8(int32_t (&c)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Compute capability 8.x has tensor cores for it; 9.0 emulates it.
__device__ __forceinline__ void mma_s4(int32_t (&c)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k64.row.col.s32.s4.s4.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma_f16(float (&c)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma_bf16(float (&c)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// c += a b over 8 elements of a 16-bit T along K. Per lane, g = lane / 4, t = lane % 4: a0 elements 2t and 2t + 1 of row
/// g, a1 of row g + 8; b the same of column g; c[0..1] row g, columns 2t and 2t + 1, c[2..3] row g + 8.
template <class T>
__device__ __forceinline__ void mma_eight(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  if constexpr (std::is_same_v<T, __half>) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(b));
  } else {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(b));
  }
}

__device__ __forceinline__ void mma_tf32(float (&c)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Round a float's bits to TF32 (10 fraction bits, the other 13 zero).
__device__ __forceinline__ uint32_t round_to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

}  // namespace graphopt
