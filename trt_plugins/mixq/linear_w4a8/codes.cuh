// What all w4a8 kernels share: arguments, and int8 codes made from packed 4-bit ones.
#pragma once

#include <cstdint>

#include "mixq/common/outlier_mma.cuh"

namespace graphopt::mixq {

/// LinearW4A8Params with the element type known.
template <class T>
struct LinearW4A8Args {
  int64_t m;
  int64_t n;
  int32_t k;
  int32_t capacity;
  int32_t row_bytes;    // of wq4
  int32_t group;        // columns
  int32_t group_shift;  // its logarithm; only the generic kernel takes groups that have none
  int8_t const* __restrict__ xq;    // [M, K]
  float const* __restrict__ sx;     // [M]
  T const* __restrict__ xo;         // [M, C]
  int8_t const* __restrict__ wq4;   // [N, row_bytes]
  uint8_t const* __restrict__ sg;   // [groups, N]
  float const* __restrict__ sw;     // [N]
  T const* __restrict__ wo;         // [N, C]
  T const* __restrict__ bias;       // [N]
  T const* __restrict__ residual;   // [M, N] or null
  T* __restrict__ y;                // [M, N]
  int32_t prefetched;               // bytes of a row of wq4 to bring into L2 early, a multiple of 16
};

/// Multiplies packed codes by their group's integer scale s, four at a time in one integer product.
///
/// With u = code + 8 in 1..15 as bytes, u s + (128 - 8 s) = s code + 128 lies in 2..254: no byte carries into the next,
/// and flipping its top bit leaves s code as int8.
class GroupScale {
 public:
  __device__ __forceinline__ explicit GroupScale(uint32_t scale)
      : scale_(scale), offset_(kBias - 0x08080808u * scale) {}

  /// The int8 codes of the four low nibbles of `word`.
  __device__ __forceinline__ uint32_t low(uint32_t word) const {
    uint32_t raised;  // code + 8: the nibbles with their top bits flipped, in one instruction
    asm("lop3.b32 %0, %1, 0x0f0f0f0f, 0x08080808, (0xf0 & 0xcc) ^ 0xaa;" : "=r"(raised) : "r"(word));
    return (raised * scale_ + offset_) ^ kBias;
  }

  /// The int8 codes of the four high nibbles of `word`.
  __device__ __forceinline__ uint32_t high(uint32_t word) const { return low(word >> 4); }

 private:
  static constexpr uint32_t kBias = 0x80808080u;

  uint32_t scale_;
  uint32_t offset_;
};

/// Load a byte that other blocks read too. Volatile, so that it starts where it is written.
__device__ __forceinline__ uint32_t load_byte(uint8_t const* pointer) {
  uint32_t value;
  asm volatile("ld.global.nc.u8 %0, [%1];" : "=r"(value) : "l"(pointer));
  return value;
}

}  // namespace graphopt::mixq
