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

/// Wait for the kernel before. Returns whether the caller set a condition and that kernel left 0 there.
__device__ __forceinline__ bool is_unwanted(int32_t const* condition) {
  wait_for_predecessor();
  release_successor();
  return condition != nullptr && __ldcg(condition) == 0;
}

/// Start to copy `vectors` vectors of 16 bytes to shared memory.
template <class T>
__device__ __forceinline__ void copy_ahead(uint4* shared, T const* global, int32_t vectors, int thread, int threads) {
  for (int32_t v = thread; v < vectors; v += threads) {
    cp_async_16(shared_address(shared + v), reinterpret_cast<uint4 const*>(global) + v, true);
  }
}

/// Block: (threads of a row, its team; rows that the block works on at a time). Shared memory: gamma and beta if
/// kAhead, a row's inputs for each team if args.ahead, the OutlierSet.
/// kAhead: gamma and beta are kept, and the next row is read ahead, in shared memory.
template <class T, class Producer, bool kOneWarp, int kVecs, bool kAhead>
__global__ void __launch_bounds__(kOneWarp ? kWarp * kWarpRowsPerBlock : kMaxThreads,
                                  kOneWarp ? kMaxThreads / (kWarp * kWarpRowsPerBlock) : 1)
    quantize_register_rows(QuantizeArgs<T> const args) {
  extern __shared__ uint4 shared[];
  __shared__ float2 scratch[Team<false>::kScratch];
  // With few rows, the set of outliers is built before the kernel before ends; with many, while the first rows come.
  bool const early = !kAhead && !args.idx_changes;
  // A linear that comes next may then set itself up, and bring in weights, under the kernel before this one. It waits for
  // this kernel, which waits for that one. M-ANT's linears, whose x has the least room for outliers, gain 1 to 3
  // microseconds by it, MixQ's lose half of one.
  constexpr int kLeastCapacity = 16;
  if (early && args.condition == nullptr && args.capacity <= kLeastCapacity) release_successor();
  if (!early && is_unwanted(args.condition)) return;
  // Through a shuffle, or the special register would be read again at every use.
  int const lane = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x), static_cast<int>(threadIdx.x) % kWarp);
  int const lanes = static_cast<int>(blockDim.x), member = static_cast<int>(threadIdx.y);
  int const teams = static_cast<int>(blockDim.y);
  int const thread = member * lanes + lane, threads = lanes * teams;
  int32_t const vectors = args.cols / Vec<T>::kSize;
  constexpr int kParameters = Producer::kNorm == Norm::kNone || !kAhead ? 0 : Producer::kNorm == Norm::kRms ? 1 : 2;
  constexpr int kTeamBuffers = kOneWarp ? 1 : 2;  // a warp's row has its own, other teams' rows alternate

  int const team_vectors = kVecs * lanes;
  uint4* const staging = shared + kParameters * team_vectors;
  int const staged_vectors = args.ahead ? Producer::kInputs * team_vectors : 0;
  OutlierSet<T> outliers(staging + teams * staged_vectors, vectors, args.capacity, teams * kTeamBuffers);
  outliers.read(args.idx, thread, threads);  // first, not behind rows that are on their way
  if (early) {
    __syncthreads();
    outliers.build(thread, threads);
    if (is_unwanted(args.condition)) return;
  }
  if constexpr (kParameters > 0) copy_ahead(shared, args.gamma, vectors, thread, threads);
  if constexpr (kParameters > 1) copy_ahead(shared + team_vectors, args.beta, vectors, thread, threads);
  if constexpr (kParameters > 0) cp_async_commit();
  T const* const gamma = kParameters > 0 ? reinterpret_cast<T const*>(shared) : args.gamma;
  T const* const beta = kParameters > 1 ? reinterpret_cast<T const*>(shared + team_vectors) : args.beta;

  Team<kOneWarp> team(scratch);
  RegisterRow<T, Producer, kOneWarp, kVecs, kAhead> row(args, gamma, beta, lane, lanes,
                                                         staging + member * staged_vectors);
  int32_t const stride = static_cast<int32_t>(gridDim.x) * teams;
  int32_t m = static_cast<int32_t>(blockIdx.x) * teams + member;
  if (m < args.rows) row.load(m);  // in flight while the set is built
  // What all teams read ahead delays their first rows. Where rows of two inputs are read, memory is all that counts;
  // else it is better to start to work early.
  constexpr bool kAtOnce = Producer::kInputs == 2;
  bool const ahead = kAhead && args.ahead;
  if (kAtOnce && ahead && m + stride < args.rows) {
    row.read_ahead(m + stride);
  } else {
    cp_async_commit();  // an empty group in its place
  }
  if (!early) {
    __syncthreads();
    outliers.build(thread, threads);
  }
  if constexpr (kParameters > 0) cp_async_wait<1>();
  __syncthreads();
  row.find_slots(outliers);
  if (m >= args.rows) return;  // together with its team

  int buffer = member * kTeamBuffers;
  for (bool first = !kAtOnce && ahead;; first = false) {
    row.combine();
    if (first && m + stride < args.rows) row.read_ahead(m + stride);
    if constexpr (Producer::kInputs == 2 && Producer::kNorm != Norm::kNone) {
      if (args.sum != nullptr) row.store_to(args.sum, m);
    }
    if constexpr (Producer::kNorm != Norm::kNone) row.normalize_row(team);
    if (args.y != nullptr) row.store_to(args.y, m);
    row.take_outliers(outliers, buffer);
    if constexpr (kOneWarp) __syncwarp();
    row.quantize(team, m);
    outliers.gather(args.xo + int64_t{m} * args.capacity, buffer, lane, lanes);
    // A row's copies alternate between two buffers: who writes the first again has passed the barrier of the second.
    if constexpr (kOneWarp) {
      __syncwarp();
    } else {
      buffer ^= 1;
    }
    m += stride;
    if (m >= args.rows) return;
    if (ahead) {
      cp_async_wait<0>();
      row.take();
      if (m + stride < args.rows) row.read_ahead(m + stride);
    } else {
      row.load(m);
    }
  }
}

/// Any K and any alignment: a block per row, inputs read again for every pass.
template <class T, class Producer>
__global__ void __launch_bounds__(kRereadThreads) quantize_reread_rows(QuantizeArgs<T> const args) {
  __shared__ float2 scratch[Team<false>::kScratch];
  if (is_unwanted(args.condition)) return;
  Team<false> team(scratch);
  int32_t const lane = static_cast<int32_t>(threadIdx.x), lanes = static_cast<int32_t>(blockDim.x);

  for (int64_t m = blockIdx.x; m < args.rows; m += gridDim.x) {
    int64_t const base = m * args.cols, from = m * args.stride;
    T const* const other = Producer::kInputs == 2 ? args.other + from : nullptr;
    RereadRow<T, Producer> row{args.x + from, other, args.gamma, args.beta, args.cols};
    row.measure(team, args.epsilon, args.sum == nullptr ? nullptr : args.sum + base);
    auto slot_of = [&](int32_t k) {  // -1: not an outlier
      int32_t const slot = lower_bound(args.idx, args.capacity, static_cast<uint32_t>(k));
      return slot < args.capacity && args.idx[slot] == k ? slot : -1;
    };

    float amax = 0.0f;
    for (int32_t k = lane; k < args.cols; k += lanes) {
      T const v = row.produced(k);
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
    amax = team.max_nan(amax);
    if (lane == 0) args.sx[m] = __fdiv_rn(amax, args.code_max);
    RowScale const scale = row_scale(amax, args.code_max);
    auto code_of = [&](int32_t k) {
      bool const zero = k >= args.cols || !scale.keep || slot_of(k) >= 0;
      return zero ? 0u : code(to_float(row.produced(k)), scale.inverse) & 0xffu;
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
