// The products of a slice's x with all entries, in shared memory, for the kernel of sm90_wide.cuh.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "common/sm90_ring.cuh"
#include "common/vec.cuh"
#include "vq/linear/sm90_wide_layout.h"
#include "vq/linear/table_walk.cuh"

namespace graphopt::vq {

constexpr int kWideBarrier = 1;  // of the warps that look up

/// Makes the products; all threads that look up take part.
template <class Shape>
class WideTableMaker {
  using T = typename Shape::T;
  static constexpr int kTiles = 2 * kWideRunTiles;  // of eight entries, that a warp multiplies at a time
  static constexpr int kBatchEntries = 8 * kTiles;
  static constexpr int kWarpEntries = 2 * kWideEntries / kTableWarps;  // of one residual
  static constexpr int kBatches = kWarpEntries / kBatchEntries;
  /// From the first run of a batch to the second; half of the lanes store them in the other order, so that they meet at
  /// fewer banks.
  static constexpr int kSwap = wide_place(0, 0, wide_entry(kWideRunTiles, 0));

 public:
  /// Starts bringing the first entries.
  __device__ __forceinline__ WideTableMaker(TableArgs<T> const& args, uint32_t table) : args_(args) {
    int const lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    int const g = lane / 4, t = lane % 4;
    int const residual = warp / (kTableWarps / 2), entry = warp * kWarpEntries % kWideEntries;
    books_ = static_cast<uint32_t>((residual * kWideEntries + entry + wide_entry(0, g)) * 4 + t);
    swapped_ = g % 2 != 0;
    made_ = table + wide_place(g, residual, entry + wide_entry(0, 2 * t));
    load_entries(0);
  }

  /// Products of a slice's x with all entries, times a power of two; returns its inverse.
  __device__ __forceinline__ float fill(uint32_t x) {
    constexpr float kMost = 32768.0f, kEnough = 0.0625f, kStep = 4096.0f;
    constexpr int kTries = 4;
    float const start = first_scale(x);
    float scale = start != 0.0f ? start : 1.0f;
    for (int i = 1;; ++i) {
      float const largest = make_table(x, scale);
      bool const overflow = any(largest > kMost), enough = any(largest >= kEnough);
      if ((enough && !overflow) || start == 0.0f || i == kTries) return 1.0f / scale;
      scale = overflow ? scale / kStep : scale * kStep;
    }
  }

 private:
  /// Whether it is so for any thread that looks up; a barrier of theirs.
  __device__ __forceinline__ static bool any(bool so) {
    uint32_t found;
    asm volatile(
        "{\n.reg .pred one, any;\nsetp.ne.u32 one, %1, 0;\n"
        "barrier.cta.red.or.pred any, %2, %3, one;\nselp.u32 %0, 1, 0, any;\n}"
        : "=r"(found)
        : "r"(static_cast<uint32_t>(so)), "n"(kWideBarrier), "n"(kTableThreads)
        : "memory");
    return found != 0;
  }

  /// A power of two that makes the largest sum of a group's |x| about 16. 0 for zeros and where x is not finite.
  __device__ __forceinline__ static float first_scale(uint32_t x) {
    Vec<T> vec;
    vec.word[0] = x;
    float sum = fabsf(vec.get(0)) + fabsf(vec.get(1));
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
#pragma unroll
    for (int lanes = 4; lanes < 32; lanes *= 2) sum = fmaxf(sum, __shfl_xor_sync(0xffffffffu, sum, lanes));
    constexpr uint32_t kExponent = 0x7f800000u;
    constexpr float kSmallest = 1e-30f, kLargest = 1e30f, kTarget = 16.0f;
    if (!(sum > kSmallest && sum < kLargest)) return 0.0f;
    return kTarget / __uint_as_float(__float_as_uint(sum) & kExponent);
  }

  /// Start bringing column g, elements 2 t and 2 t + 1, of the tiles of a batch.
  __device__ __forceinline__ void load_entries(int batch) {
    auto const* const books = reinterpret_cast<uint32_t const*>(args_.codebooks) + books_ + batch * kBatchEntries * 4;
#pragma unroll
    for (int i = 0; i < kTiles; ++i) entries_[i] = __ldg(books + wide_entry(i, 0) * 4);
  }

  /// The largest |product| of this lane's, scaled.
  __device__ __forceinline__ float make_table(uint32_t x, float scale) {
    __half2 largest = __float2half2_rn(0.0f);
#pragma unroll 1
    for (int batch = 0; batch < kBatches; ++batch) {
      uint32_t now[kTiles], made[kTiles];
#pragma unroll
      for (int i = 0; i < kTiles; ++i) now[i] = entries_[i];
      load_entries((batch + 1) % kBatches);  // the first one again for the next table
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        float c[4] = {};
        mma_eight<T>(c, x, 0, from_half_pair<T>(now[i]));
        made[i] = round_pair<__half>(c[0] * scale, c[1] * scale);
        __half2 pair;
        memcpy(&pair, &made[i], sizeof(pair));
        largest = __hmax2(largest, __habs2(pair));
      }
      store_runs(made, wide_place(0, 0, batch * kBatchEntries));
    }
    return fmaxf(__low2float(largest), __high2float(largest));
  }

  /// Store a batch's products, `offset` bytes from this lane's first ones.
  __device__ __forceinline__ void store_runs(uint32_t const (&made)[kTiles], int offset) const {
    uint32_t runs[2][kWideRunTiles];
#pragma unroll
    for (int w = 0; w < kWideRunTiles; ++w) {
      uint32_t const a = made[w], b = made[kWideRunTiles + w];
      runs[0][w] = swapped_ ? b : a, runs[1][w] = swapped_ ? a : b;
    }
    store_run(made_ + (swapped_ ? kSwap : 0) + offset, runs[0]);
    store_run(made_ + (swapped_ ? 0 : kSwap) + offset, runs[1]);
  }

  __device__ __forceinline__ static void store_run(uint32_t place, uint32_t const (&run)[kWideRunTiles]) {
    store_shared(place, run[0], run[1], run[2], run[3]);
  }

  TableArgs<T> const& args_;
  uint32_t books_;  // the word of the codebooks that this lane begins with
  uint32_t made_;   // where this lane's products are
  bool swapped_;
  uint32_t entries_[kTiles];  // on their way
};

}  // namespace graphopt::vq
