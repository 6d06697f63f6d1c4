// Search in a list of channels.
#pragma once

#include <cstdint>

namespace graphopt::mixq {

/// First slot of idx, ascending as unsigned numbers (padding -1 is the largest), that is not below `channel`.
__device__ __forceinline__ int32_t lower_bound(int32_t const* idx, int32_t capacity, uint32_t channel) {
  int32_t low = 0, high = capacity;
  while (low < high) {
    int32_t const middle = (low + high) / 2;
    if (static_cast<uint32_t>(idx[middle]) < channel) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace graphopt::mixq
