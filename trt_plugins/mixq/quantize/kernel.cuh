// One launch from the inputs of the producer to codes, scales and outliers; inputs are read once where a row fits in
// the registers of a block.
#pragma once

#include <cstdint>

#include "common/ptx.cuh"
#include "common/reduce.cuh"
#include "common/vec.cuh"
#include "mixq/common/channel_list.cuh"
#include "mixq/quantize/args.cuh"
#include "mixq/quantize/codes.cuh"
#include "mixq/quantize/outliers.cuh"
#include "mixq/quantize/policy.h"
#include "mixq/quantize/row.cuh"

namespace graphopt::mixq {

/// Wait for the oldest of `stages` (1 or 2) rows that are being copied.
__device__ __forceinline__ void wait_for_oldest(int stages) {
  if (stages == 1) {
    cp_async_wait<0>();
  } else {
    cp_async_wait<1>();
  }
}

/// Wait for the kernel before. Returns whether the caller set a condition and that kernel left 0 there.
__device__ __forceinline__ bool is_unwanted(int32_t const* condition) {
  wait_for_predecessor();
  release_successor();
  return condition != nullptr && __ldcg(condition) == 0;
}

/// Block: (threads of a row, rows of a block). Shared memory: the staging of RegisterRow, then the OutlierSet.
/// kAhead: rows are read ahead into shared memory, args.stages of them, while the one before is worked on.
template <class T, class Producer, bool kOneWarp, int kVecs, bool kAhead>
__global__ void __launch_bounds__(kOneWarp ? kWarp * kWarpRowsPerBlock : kMaxThreads,
                                  kOneWarp ? kMaxThreads / (kWarp * kWarpRowsPerBlock) : 1)
    quantize_register_rows(QuantizeArgs<T> const args) {
  extern __shared__ uint4 shared[];
  __shared__ float scratch[2 * kWarp];
  if (is_unwanted(args.condition)) return;
  // Through a shuffle, or the special register would be read again at every use.
  int const lane = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x), static_cast<int>(threadIdx.x) % kWarp);
  int const lanes = static_cast<int>(blockDim.x);
  int32_t const vectors = args.cols / Vec<T>::kSize;
  constexpr int kBuffers = kOneWarp ? kWarpRowBuffers : kBlockRowBuffers;
  uint4* staging = shared;  // the outlier set follows it
  OutlierSet<T, kBuffers> outliers(staging + args.stages * Producer::kInputs * kVecs * lanes, vectors, args.capacity);
  RowReducer<kOneWarp> reducer(scratch);
  RegisterRow<T, Producer, kOneWarp, kVecs> row(args, lane, lanes, staging);

  int64_t const stride = int64_t{gridDim.x} * blockDim.y;
  int64_t m = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (m < args.rows) row.load(m);  // in flight while the set is built
  if constexpr (kAhead) {
    for (int s = 0; s < args.stages; ++s) row.read_ahead(m + (s + 1) * stride, s);
  }
  outliers.build(args.idx, static_cast<int>(threadIdx.y) * lanes + lane, lanes * static_cast<int>(blockDim.y));
  row.find_slots(outliers);

  int buffer = kOneWarp ? static_cast<int>(threadIdx.y) : 0;
  for (int stage = 0; m < args.rows;) {
    row.combine();
    if constexpr (Producer::kInputs == 2 && Producer::kNorm != Norm::kNone) {
      if (args.sum != nullptr) row.store_to(args.sum);
    }
    if constexpr (Producer::kNorm != Norm::kNone) row.normalize_row(reducer);
    if (args.y != nullptr) row.store_to(args.y);
    row.take_outliers(outliers, buffer);
    if constexpr (kOneWarp) __syncwarp();
    row.quantize(reducer);
    outliers.gather(row.xo(), buffer, lane, lanes);
    // A block's rows alternate between two buffers: who writes the first again has passed the barrier of the second.
    if constexpr (kOneWarp) {
      __syncwarp();
    } else {
      buffer ^= 1;
    }
    m += stride;
    if (m >= args.rows) break;
    if (!kAhead || args.stages == 0) {
      row.load(m);
      continue;
    }
    wait_for_oldest(args.stages);
    row.take(m, stage);
    row.read_ahead(m + args.stages * stride, stage);
    stage = args.stages - 1 - stage;
  }
}

/// Any K and any alignment: a block per row, inputs read again for every pass.
template <class T, class Producer>
__global__ void __launch_bounds__(kRereadThreads) quantize_reread_rows(QuantizeArgs<T> const args) {
  __shared__ float scratch[2 * kWarp];
  if (is_unwanted(args.condition)) return;
  RowReducer<false> reducer(scratch);
  int32_t const lane = static_cast<int32_t>(threadIdx.x), lanes = static_cast<int32_t>(blockDim.x);
  float const count = static_cast<float>(args.cols);

  for (int64_t m = blockIdx.x; m < args.rows; m += gridDim.x) {
    int64_t const base = m * args.cols;
    auto source = [&](int32_t k) {
      float const other = Producer::kInputs == 2 ? to_float(args.other[base + k]) : 0.0f;
      return from_float<T>(Producer::template value<T>(to_float(args.x[base + k]), other));
    };
    Moments moments{0.0f, 0.0f};
    if constexpr (Producer::kNorm != Norm::kNone) {
      float sum = 0.0f;
      for (int32_t k = lane; k < args.cols; k += lanes) {
        T const v = source(k);
        sum += to_float(v);
        if (Producer::kInputs == 2 && args.sum != nullptr) args.sum[base + k] = v;
      }
      if constexpr (Producer::kNorm == Norm::kLayer) moments.mean = reducer.all<Add>(sum) / count;
      float squares = 0.0f;
      for (int32_t k = lane; k < args.cols; k += lanes) {
        float const centered = to_float(source(k)) - moments.mean;
        squares += centered * centered;
      }
      moments.scale = 1.0f / sqrtf(reducer.all<Add>(squares) / count + args.epsilon);
    }
    auto produced = [&](int32_t k) {
      T const v = source(k);
      if constexpr (Producer::kNorm == Norm::kNone) return v;
      float const beta = Producer::kNorm == Norm::kLayer ? to_float(args.beta[k]) : 0.0f;
      return from_float<T>(normalize<Producer>(to_float(v), moments, to_float(args.gamma[k]), beta));
    };
    auto slot_of = [&](int32_t k) {  // -1: not an outlier
      int32_t const slot = lower_bound(args.idx, args.capacity, static_cast<uint32_t>(k));
      return slot < args.capacity && args.idx[slot] == k ? slot : -1;
    };

    float amax = 0.0f;
    for (int32_t k = lane; k < args.cols; k += lanes) {
      T const v = produced(k);
      if (args.y != nullptr) args.y[base + k] = v;
      int32_t const slot = slot_of(k);
      if (slot >= 0) {
        args.xo[m * args.capacity + slot] = v;
      } else {
        amax = MaxNan::apply(amax, fabsf(to_float(v)));
      }
    }
    int32_t const used = lower_bound(args.idx, args.capacity, static_cast<uint32_t>(args.cols));
    for (int32_t c = used + lane; c < args.capacity; c += lanes) {
      args.xo[m * args.capacity + c] = from_float<T>(0.0f);
    }
    amax = reducer.all<MaxNan>(amax);
    if (lane == 0) args.sx[m] = __fdiv_rn(amax, args.code_max);
    RowScale const scale = row_scale(amax, args.code_max);
    auto code_of = [&](int32_t k) {
      bool const zero = k >= args.cols || scale.keep == 0 || slot_of(k) >= 0;
      return zero ? 0u : code(to_float(produced(k)), scale.inverse) & 0xffu;
    };
    if (args.code_max == kEightBitMax) {
      for (int32_t k = lane; k < args.cols; k += lanes) args.xq[base + k] = static_cast<int8_t>(code_of(k));
    } else {
      for (int32_t b = lane; b < args.row_bytes; b += lanes) {
        int32_t const k = b / kPackedBytes * kPackedCodes + b % kPackedBytes;
        args.xq[m * args.row_bytes + b] = static_cast<int8_t>((code_of(k) & 15u) | code_of(k + kPackedBytes) << 4);
      }
    }
  }
}

}  // namespace graphopt::mixq
