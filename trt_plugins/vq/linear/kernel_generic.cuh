// Kernel for every T, v, b, r, tile and alignment: codes bit by bit from memory, codebooks from memory, float32
// throughout. Correct rather than fast.
#pragma once

#include <cstdint>

#include "common/reduce.cuh"
#include "common/vec.cuh"
#include "vq/linear/lattice.cuh"
#include "vq/linear/params.h"

namespace graphopt::vq {

constexpr int kGenericTokens = 8;     // of a block
constexpr int kGenericThreads = 256;  // a warp for a row of W

/// What one code stands for, element by element.
class GenericEntry {
 public:
  __device__ __forceinline__ GenericEntry(LinearParams const& p, int64_t n, int64_t j, int i) : p_(p) {
    int64_t const bytes = row_bytes(p.k, p.vector, p.bits, p.residuals);
    int64_t const bit = (j * p.residuals + i) * p.bits, first = bit / 8;
    uint32_t word = 0;
    for (int byte = 0; byte < 3; ++byte) {  // a code of up to 16 bits lies in three bytes
      if (first + byte < bytes) {
        word |= static_cast<uint32_t>(static_cast<uint8_t>(p.codes[n * bytes + first + byte])) << (8 * byte);
      }
    }
    code_ = (word >> (bit % 8)) & ((uint32_t{1} << p.bits) - 1);
    if (p.lattice()) {
      signs_ = e8_signs(code_ >> 8);
      row_ = __ldg(&kE8Table.row[code_ & 255]);
      ratio_ = p.ratios[i];
    } else {
      int64_t const across = (p.k + p.tile_columns - 1) / p.tile_columns;
      int64_t const tile = n / p.tile_rows * across + j * p.vector / p.tile_columns;
      entry_ = static_cast<__half const*>(p.codebooks) + (((tile * p.residuals + i) << p.bits) + code_) * p.vector;
    }
  }

  __device__ __forceinline__ float element(int e) const {
    if (!p_.lattice()) return __half2float(entry_[e]);
    float const size = static_cast<float>((row_ >> (2 * e)) & 3) + 0.5f;
    bool const minus = (((signs_ >> e) ^ (e == 7 ? row_ >> 16 : 0)) & 1) != 0;
    return ratio_ * ((minus ? -size : size) + (code_ >> 15 != 0 ? 0.25f : -0.25f));
  }

 private:
  LinearParams const& p_;
  uint32_t code_, signs_, row_;
  float ratio_;
  __half const* entry_;
};

template <class T>
__global__ void __launch_bounds__(kGenericThreads) linear_generic(LinearParams const p) {
  int const lane = static_cast<int>(threadIdx.x) % kWarp;
  int64_t const n = int64_t{blockIdx.x} * (kGenericThreads / kWarp) + threadIdx.x / kWarp;
  int64_t const m0 = int64_t{blockIdx.y} * kGenericTokens;
  if (n >= p.n) return;
  auto const* x = static_cast<T const*>(p.x);
  float sums[kGenericTokens] = {};
  for (int64_t j = lane; j * p.vector < p.k; j += kWarp) {
    for (int i = 0; i < p.residuals; ++i) {
      GenericEntry const entry(p, n, j, i);
      for (int e = 0; e < p.vector && j * p.vector + e < p.k; ++e) {
        float const weight = entry.element(e);
#pragma unroll
        for (int m = 0; m < kGenericTokens; ++m) {
          if (m0 + m < p.m) sums[m] += weight * to_float(x[(m0 + m) * p.k + j * p.vector + e]);
        }
      }
    }
  }
#pragma unroll
  for (int m = 0; m < kGenericTokens; ++m) {
    float const sum = warp_reduce<Add>(sums[m]);
    if (lane == 0 && m0 + m < p.m) {
      float const bias = to_float(static_cast<T const*>(p.bias)[n]);
      static_cast<T*>(p.y)[(m0 + m) * p.n + n] = from_float<T>(sum * p.scale[n] + bias);
    }
  }
}

}  // namespace graphopt::vq
