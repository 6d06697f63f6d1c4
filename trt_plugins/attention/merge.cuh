// The end of a segment: the parts of the warps of a block become one, those of several blocks too, and the sum of the
// weights divides the outputs. A part (o, m, l) stands for o = sum exp2(s - m) v and l = sum exp2(s - m).
#pragma once

#include <cmath>
#include <cstdint>

#include "attention/args.cuh"
#include "attention/stamps.cuh"
#include "attention/work.cuh"
#include "common/ptx.cuh"

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

/// Add up the warps of a block for `count` rows of a segment from row `first` on, and write y, or this block's part of it.
/// Called by all threads of a block.
///
/// Args:
///   sums: [kWarps, kRows, 2], maxima and sums of each warp.
///   output: (warp, row, column) to the warp's output.
template <int kWarps, int kRows, class T, class Output>
__device__ __forceinline__ void write_block(AttentionArgs<T> const& args, PartialMemory const& memory,
                                            Parts const& parts, SegmentRows const& rows, int32_t first, int32_t count,
                                            float const* sums, Output const& output) {
  int64_t const slot = parts.slot(static_cast<int32_t>(blockIdx.x));
  for (int32_t item = static_cast<int32_t>(threadIdx.x); item < count * args.head_size;
       item += static_cast<int32_t>(blockDim.x)) {
    int32_t const row = item / args.head_size, column = item % args.head_size;
    float m = -INFINITY, sum = 0.0f, value = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) m = fmaxf(m, sums[(w * kRows + row) * 2]);
    float const origin = usable_max(m);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      float const weight = exp2f(sums[(w * kRows + row) * 2] - origin);
      sum += sums[(w * kRows + row) * 2 + 1] * weight;
      value += output(w, row, column) * weight;
    }
    if (parts.whole()) {
      args.y[row_offset(args, rows.b, rows.h, rows.first + first + row) + column] = from_float<T>(value / sum);
      continue;
    }
    memory.outputs(slot, first + row)[column] = value;
    if (column == 0) {
      memory.sums(slot, first + row)[0] = m;
      memory.sums(slot, first + row)[1] = sum;
    }
  }
}

/// Parts that a thread asks L2 for at once, which takes about a microsecond: where threads are few, they meet all parts
/// of a segment, up to 33 of them on an H100, where they are many, a few.
template <int kThreads>
constexpr int kPartsAtOnce = kThreads <= 128 ? 12 : 4;

/// Floats that combine_blocks needs of shared memory.
constexpr int combine_floats(int threads) { return 6 * threads; }

/// Four neighbouring outputs of a row over some tokens, with their maximum and the sum of their weights.
struct QuadPart {
  float4 output;
  float max, sum;

  __device__ __forceinline__ static QuadPart none() { return {make_float4(0.0f, 0.0f, 0.0f, 0.0f), -INFINITY, 0.0f}; }

  __device__ __forceinline__ void add(QuadPart const& more) {
    float const grown = fmaxf(max, more.max), origin = usable_max(grown);
    float const kept = exp2f(max - origin), weight = exp2f(more.max - origin);
    output.x = output.x * kept + more.output.x * weight, output.y = output.y * kept + more.output.y * weight;
    output.z = output.z * kept + more.output.z * weight, output.w = output.w * kept + more.output.w * weight;
    sum = sum * kept + more.sum * weight;
    max = grown;
  }

  template <class T>
  __device__ __forceinline__ void write(T* y) const {
    y[0] = from_float<T>(output.x / sum);
    y[1] = from_float<T>(output.y / sum);
    y[2] = from_float<T>(output.z / sum);
    y[3] = from_float<T>(output.w / sum);
  }
};

/// Add up the parts of a segment in a fixed order and write y. Called by all threads of a block; D is a multiple of 4.
/// Where the outputs are fewer than the threads, several threads share the parts of an output: a load from L2 takes
/// longer than everything else here, so as many as possible are in flight, and none waits for another.
///
/// Args:
///   shared: combine_floats of the block, aligned to 16 bytes.
template <int kThreads, class T>
__device__ __forceinline__ void combine_blocks(AttentionArgs<T> const& args, PartialMemory const& memory,
                                               Parts const& parts, SegmentRows const& rows, float* shared) {
  int32_t const thread = static_cast<int32_t>(threadIdx.x);
  int32_t const columns = args.head_size / 4, quads = rows.count * columns, slices = max(1, kThreads / quads);
  auto const y = [&](int32_t item) {
    return args.y + row_offset(args, rows.b, rows.h, rows.first + item / columns) + item % columns * 4;
  };
  float4* const outputs = reinterpret_cast<float4*>(shared);              // [kThreads]
  float2* const sums = reinterpret_cast<float2*>(shared + 4 * kThreads);  // [kThreads]
  int32_t const slice = thread / quads;
  for (int32_t item = thread - slice * quads; slice < slices && item < quads; item += kThreads) {
    int32_t const row = item / columns, column = item % columns * 4;
    constexpr int kAtOnce = kPartsAtOnce<kThreads>;
    QuadPart all = QuadPart::none();
    for (int32_t block = parts.first + slice; block <= parts.last; block += kAtOnce * slices) {
      QuadPart part[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        part[i] = QuadPart::none();
        if (block + i * slices > parts.last) continue;
        int64_t const slot = parts.slot(block + i * slices);
        float2 const sum = __ldcg(reinterpret_cast<float2 const*>(memory.sums(slot, row)));
        part[i] = {__ldcg(reinterpret_cast<float4 const*>(memory.outputs(slot, row) + column)), sum.x, sum.y};
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) all.add(part[i]);
    }
    if (slices == 1) {
      all.write(y(item));
    } else {  // item == thread - slice * quads: there is one round
      outputs[thread] = all.output;
      sums[thread] = make_float2(all.max, all.sum);
    }
  }
  __syncthreads();
  if (slices > 1 && thread < quads) {
    QuadPart all = QuadPart::none();
    for (int32_t s = 0; s < slices; ++s) {
      float2 const sum = sums[s * quads + thread];
      all.add({outputs[s * quads + thread], sum.x, sum.y});
    }
    all.write(y(thread));
  }
  __syncthreads();  // the memory may be written again
}

/// Count this block's part, which all its threads have written, as done. Returns whether it was the last one. The
/// release of one thread covers what others wrote before the barrier, its acquire what they read after the next one.
__device__ __forceinline__ bool count_part(int32_t* counter, Parts const& parts, int32_t* shared_flag) {
  __syncthreads();
  if (threadIdx.x == 0) *shared_flag = atomic_add_acq_rel(counter, 1) == parts.last - parts.first ? 1 : 0;
  __syncthreads();
  return *shared_flag != 0;
}

/// This block's part of a segment, if it is only a part, has been written: the last block to come here adds all up.
///   segment: its number. The others as in count_part and combine_blocks.
template <int kThreads, class T>
__device__ __forceinline__ void meet_blocks(AttentionArgs<T> const& args, PartialMemory const& memory, int32_t segment,
                                            Parts const& parts, SegmentRows const& rows, int32_t* shared_flag,
                                            float* shared, Stamps& stamps) {
  stamps.pass(Phase::kPart);
  if (parts.whole()) return;
  bool const last = count_part(args.counters + segment, parts, shared_flag);
  stamps.pass(Phase::kCounted);
  if (!last) return;
  combine_blocks<kThreads>(args, memory, parts, rows, shared);
  stamps.pass(Phase::kMerged);
}

}  // namespace graphopt::attention
