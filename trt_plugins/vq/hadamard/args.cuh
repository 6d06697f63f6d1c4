// HadamardParams with the element type known.
#pragma once

#include <cstdint>

namespace graphopt::vq {

template <class T>
struct HadamardArgs {
  T const* __restrict__ x;
  T const* __restrict__ other;
  T const* __restrict__ gamma;
  T const* __restrict__ beta;
  int8_t const* __restrict__ signs;
  T* __restrict__ z;
  T* __restrict__ sum;  // or null
  T* __restrict__ y;    // or null
  int32_t k;
  int32_t channels;  // K'
  int32_t bits;      // of an index in a block of H
  float factor;      // block^-1/2
  float epsilon;
};

}  // namespace graphopt::vq
