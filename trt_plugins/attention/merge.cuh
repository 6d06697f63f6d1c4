// The end of a segment: the parts of the warps of a block become one, those of several blocks too, and the sum of the
// weights divides the outputs. A part (o, m, l) stands for o = sum exp2(s - m) v and l = sum exp2(s - m).
#pragma once

#include <cmath>
#include <cstdint>

#include "attention/args.cuh"
#include "attention/work.cuh"

namespace graphopt::attention {

/// A maximum of scores that exponents can be taken from: that of no scores would give NaN.
__device__ __forceinline__ float usable_max(float m) { return m == -INFINITY ? 0.0f : m; }

/// Rows of one segment, as the end of it sees them.
struct SegmentRows {
  int32_t b;
  int32_t h;      // key/value head
  int32_t first;  // row of the segment's first row
  int32_t count;
};

/// Add up the parts of a segment in the order of its blocks and write y. Called by all threads of a block.
template <class T>
__device__ __forceinline__ void combine_blocks(AttentionArgs<T> const& args, PartialMemory const& memory,
                                               Parts const& parts, SegmentRows const& rows) {
  int32_t const values = rows.count * args.head_size;
  for (int32_t item = static_cast<int32_t>(threadIdx.x); item < values; item += static_cast<int32_t>(blockDim.x)) {
    int32_t const row = item / args.head_size, column = item % args.head_size;
    float m = -INFINITY;
    for (int32_t block = parts.first; block <= parts.last; ++block) {
      m = fmaxf(m, __ldcg(memory.sums(parts.slot(block), row)));
    }
    m = usable_max(m);
    float sum = 0.0f, output = 0.0f;
#pragma unroll 4
    for (int32_t block = parts.first; block <= parts.last; ++block) {
      int64_t const slot = parts.slot(block);
      float2 const part = __ldcg(reinterpret_cast<float2 const*>(memory.sums(slot, row)));
      float const weight = exp2f(part.x - m);
      sum += part.y * weight;
      output += __ldcg(memory.outputs(slot, row) + column) * weight;
    }
    args.y[row_offset(args, rows.b, rows.h, rows.first + row) + column] = from_float<T>(output / sum);
  }
}

/// Count this block's part, which all its threads have written, as done. Returns whether it was the last one.
__device__ __forceinline__ bool count_part(int32_t* counter, Parts const& parts, int32_t* shared_flag) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) *shared_flag = atomicAdd(counter, 1) == parts.last - parts.first ? 1 : 0;
  __syncthreads();
  bool const last = *shared_flag != 0;
  if (last) __threadfence();
  return last;
}

}  // namespace graphopt::attention
