// A row in the registers of the threads that share it.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/ptx.cuh"
#include "common/vec.cuh"
#include "mixq/quantize/args.cuh"
#include "mixq/quantize/codes.cuh"
#include "mixq/quantize/outliers.cuh"
#include "mixq/quantize/packed.cuh"
#include "mixq/quantize/squares.cuh"
#include "mixq/quantize/team.cuh"

namespace graphopt::mixq {

/// x + residual of two values of 16 bits at once. One rounding to T, as through float32: its 24 bits are enough for the
/// second rounding to change nothing (Figueroa, 1995).
template <class T>
__device__ __forceinline__ uint32_t add_pair(uint32_t a, uint32_t b) {
  uint32_t sum;
  if constexpr (std::is_same_v<T, __half>) {
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(sum) : "r"(a), "r"(b));
  } else {
    constexpr uint32_t kOnes = 0x3f803f80u;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(kOnes), "r"(b));
  }
  return sum;
}

/// Vector i of lane l holds elements from (i * lanes + l) * kSize. Vectors past the end of the row hold zeros.
///
/// kAhead: rows are read ahead into shared memory, where gamma and beta are too, padded to the team's vectors.
template <class T, class Producer, bool kOneWarp, int kVecs, bool kAhead>
class RegisterRow {
 public:
  using V = Vec<T>;
  static constexpr int kSize = V::kSize;

  /// `staging` [kInputs, kVecs, lanes] vectors of shared memory: the row that is read ahead. Each thread writes and
  /// reads its own vectors only, so no barrier is needed. gamma, beta [K]: in shared memory if kAhead.
  __device__ __forceinline__ RegisterRow(QuantizeArgs<T> const& args, T const* gamma, T const* beta, int lane,
                                         int lanes, uint4* staging)
      : args_(args),
        gamma_(gamma),
        beta_(beta),
        lane_(lane),
        lanes_(lanes),
        staging_(staging + lane),
        left_(args.cols - lane * kSize) {
    whole_ = step(kVecs - 1) + (kWarp - 1 - lane % kWarp) * kSize < left_;
  }

  /// Read the inputs. All loads are issued before the first use.
  __device__ __forceinline__ void load(int32_t row) {
    int64_t const from = first_input(row);
    load_from(args_.x + from, v_);
    if constexpr (Producer::kInputs == 2) load_from(args_.other + from, second_);
  }

  /// Start to copy a row to shared memory.
  __device__ __forceinline__ void read_ahead(int32_t row) const {
    int64_t const from = first_input(row);
    copy_ahead(args_.x + from, staging_);
    if constexpr (Producer::kInputs == 2) copy_ahead(args_.other + from, staging_ + kVecs * lanes_);
    cp_async_commit();
  }

  /// Read the inputs from there once they have arrived.
  __device__ __forceinline__ void take() {
    take_from(staging_, v_);
    if constexpr (Producer::kInputs == 2) take_from(staging_ + kVecs * lanes_, second_);
  }

  /// Learn which vectors hold outliers.
  template <class Outliers>
  __device__ __forceinline__ void find_slots(Outliers const& outliers) {
#pragma unroll
    for (int i = 0; i < kVecs; ++i) slot_[i] = inside(i) ? outliers.slot(i * lanes_ + lane_) : kNoSlot;
  }

  /// Turn the inputs into what is quantized (or normalized), rounded to T.
  __device__ __forceinline__ void combine() {
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
      if constexpr (std::is_base_of_v<Plain, Producer>) {
        continue;
      } else if constexpr (std::is_base_of_v<Sum, Producer> && sizeof(T) == 2) {
#pragma unroll
        for (int w = 0; w < 4; ++w) v_[i].word[w] = add_pair<T>(v_[i].word[w], second_[i].word[w]);
      } else {
        float value[kSize];
#pragma unroll
        for (int e = 0; e < kSize; ++e) {
          float const other = Producer::kInputs == 2 ? second_[i].get(e) : 0.0f;
          value[e] = Producer::template value<T>(v_[i].get(e), other);
        }
        v_[i].set(value);
      }
    }
  }

  __device__ __forceinline__ void store_to(T* output, int32_t row) const {
    T* const first = output + first_output(row);
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
      if (inside(i)) store(first + step(i), v_[i]);
    }
  }

  /// v = T((v - mean) * scale * gamma + beta).
  __device__ __forceinline__ void normalize_row(Team<kOneWarp>& team) {
    Moments const m = moments(team);
    keep_packed(v_);
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
      V const gamma = load_parameter(gamma_, i);
      V beta;
      if constexpr (Producer::kNorm == Norm::kLayer) beta = load_parameter(beta_, i);
      float value[kSize];
#pragma unroll
      for (int e = 0; e < kSize; ++e) {
        value[e] = normalize<Producer>(v_[i].get(e), m, gamma.get(e), beta.get(e));
      }
      v_[i].set(value);
    }
    if (whole_) return;
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
      if (!inside(i)) v_[i] = V{};
    }
  }

  /// Move the outliers out of the row; they can be gathered after the next reduction.
  template <class Outliers>
  __device__ __forceinline__ void take_outliers(Outliers const& outliers, int buffer) {
#pragma unroll
    for (int i = 0; i < kVecs; ++i) outliers.template take<Producer::kInputs == 1>(slot_[i], buffer, v_[i]);
  }

  __device__ __forceinline__ void quantize(Team<kOneWarp>& team, int32_t row) {
    Magnitude<T> magnitude;
#pragma unroll
    for (int i = 0; i < kVecs; ++i) magnitude.add(v_[i]);
    float const amax = team.max_nan(magnitude.value());
    if (lane_ == 0) args_.sx[row] = __fdiv_rn(amax, args_.code_max);
    RowScale const scale = row_scale(amax, args_.code_max);
    if (args_.code_max != kEightBitMax) return pack(scale, row);
    using Packed = typename Codes<T>::Packed;
    int8_t* const xq = args_.xq + first_output(row);
    if (!scale.keep) {
#pragma unroll 1
      for (int32_t at = 0; at < left_; at += step(1)) *reinterpret_cast<Packed*>(xq + at) = Packed{};
      return;
    }
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
      Packed const codes = Codes<T>::make(v_[i], scale);
      if (inside(i)) *reinterpret_cast<Packed*>(xq + step(i)) = codes;
    }
  }

 private:
  /// Write 4-bit codes.
  __device__ __forceinline__ void pack(RowScale scale, int32_t row) const {
    int8_t* const first = args_.xq + int64_t{row} * args_.row_bytes;
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
      typename Codes<T>::Packed codes = Codes<T>::make(v_[i], scale);
      if (!scale.keep || !inside(i)) codes = {};
      store_packed<T>(first, opaque(lane_) + i * lanes_, codes, args_.cols);
    }
  }

  /// Channels between this lane's first vector and vector i.
  __device__ __forceinline__ int32_t step(int i) const { return i * lanes_ * kSize; }
  __device__ __forceinline__ bool inside(int i) const { return step(i) < left_; }

  /// Index of this lane's first element of a row in x and in other, and in [M, K].
  __device__ __forceinline__ int64_t first_input(int32_t row) const {
    return int64_t{row} * args_.stride + lane_ * kSize;
  }
  __device__ __forceinline__ int64_t first_output(int32_t row) const {
    return int64_t{row} * args_.cols + lane_ * kSize;
  }

  __device__ __forceinline__ void load_from(T const* first, V (&v)[kVecs]) const {
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
      v[i] = V{};
      if (inside(i)) v[i] = load_streaming(first + step(i));
    }
  }

  __device__ __forceinline__ void copy_ahead(T const* first, uint4* staging) const {
#pragma unroll
    for (int i = 0; i < kVecs; ++i) cp_async_16(shared_address(staging + i * lanes_), first + step(i), inside(i));
  }

  __device__ __forceinline__ void take_from(uint4 const* staging, V (&v)[kVecs]) const {
#pragma unroll
    for (int i = 0; i < kVecs; ++i) v[i] = load_shared(staging + i * lanes_);
  }

  __device__ __forceinline__ static V load_shared(uint4 const* pointer) {
    uint4 const q = *pointer;
    V v;
    v.word[0] = q.x, v.word[1] = q.y, v.word[2] = q.z, v.word[3] = q.w;
    return v;
  }

  /// Vector i of gamma or beta; past the end of the row, anything.
  __device__ __forceinline__ V load_parameter(T const* parameter, int i) const {
    if constexpr (kAhead) return load_shared(reinterpret_cast<uint4 const*>(parameter) + lane_ + i * lanes_);
    return load_cached(parameter + (inside(i) ? step(i) + lane_ * kSize : 0));
  }

  __device__ __forceinline__ Moments moments(Team<kOneWarp>& team) const {
    float const per_element = 1.0f / static_cast<float>(args_.cols);
    if constexpr (Producer::kNorm == Norm::kRms) {
      float const squares = team.sum_of_warps(warp_squares(v_));
      return {0.0f, rsqrtf(fmaf(squares, per_element, args_.epsilon))};
    } else {
      return layer_moments(team, per_element);
    }
  }

  /// Sums around a value from among the warp's own, so that little cancels however large the mean is; then those of all
  /// warps around the mean of the first (Chan et al., 1979). One pass, one barrier.
  __device__ __forceinline__ Moments layer_moments(Team<kOneWarp>& team, float per_element) const {
    float near = 0.0f;
#pragma unroll
    for (int e = 0; e < kSize; ++e) near += v_[0].get(e);
    near = __shfl_sync(0xffffffffu, near * (1.0f / kSize), 0);
    float sum[2] = {0.0f, 0.0f}, squares[2] = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
      if (!inside(i)) continue;
#pragma unroll
      for (int e = 0; e < kSize; ++e) {
        float const offset = v_[i].get(e) - near;
        sum[e % 2] += offset;
        squares[e % 2] = fmaf(offset, offset, squares[e % 2]);
      }
    }
    float const count = elements();
    float const total = warp_reduce<Add>(sum[0] + sum[1]), mean = total * __fdividef(1.0f, fmaxf(count, 1.0f));
    float row_squares = fmaf(-mean, total, warp_reduce<Add>(squares[0] + squares[1])), row_mean = near + mean;
    if constexpr (!kOneWarp) {
      float4 const given = team.exchange(float4{row_mean, row_squares, count, 0.0f});
      float const first = __shfl_sync(0xffffffffu, given.x, 0), offset = given.x - first, weighted = given.z * offset;
      float const shift = warp_reduce<Add>(weighted);
      row_squares = warp_reduce<Add>(fmaf(weighted, offset, given.y));
      row_squares = fmaf(-shift * per_element, shift, row_squares);
      row_mean = fmaf(shift, per_element, first);
    }
    // Rounding may leave less than nothing; NaN stays.
    return {row_mean, rsqrtf(fmaf(row_squares < 0.0f ? 0.0f : row_squares, per_element, args_.epsilon))};
  }

  /// How many of the row's elements the warp holds.
  __device__ __forceinline__ float elements() const {
    if (whole_) return static_cast<float>(kVecs * kWarp * kSize);
    int32_t const left = left_ + lane_ % kWarp * kSize;  // of the warp's first lane
    int32_t count = 0;
#pragma unroll 1
    for (int i = 0; i < kVecs; ++i) count += min(max(left - step(i), 0), kWarp * kSize);
    return static_cast<float>(count);
  }

  QuantizeArgs<T> const& args_;
  T const* gamma_;
  T const* beta_;
  int lane_;
  int lanes_;
  uint4* staging_;  // this lane's
  int32_t left_;    // channels from this lane's first to the end of the row
  bool whole_;      // whether all vectors of the warp are in the row
  V v_[kVecs];
  V second_[Producer::kInputs == 2 ? kVecs : 1];
  int32_t slot_[kVecs];
};

}  // namespace graphopt::mixq
