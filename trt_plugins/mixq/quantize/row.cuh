// A row in the registers of the threads that share it.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/ptx.cuh"
#include "common/row_math.cuh"
#include "common/team.cuh"
#include "common/vec.cuh"
#include "mixq/quantize/args.cuh"
#include "mixq/quantize/codes.cuh"
#include "mixq/quantize/outliers.cuh"
#include "mixq/quantize/packed.cuh"

namespace graphopt::mixq {

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
    if constexpr (kKeepsSlots) {
#pragma unroll
      for (int i = 0; i < kVecs; ++i) slot_[i] = slot_of(outliers, i);
    }
  }

  /// Turn the inputs into what is quantized (or normalized), rounded to T.
  __device__ __forceinline__ void combine() { graphopt::combine<Producer>(v_, second_); }

  __device__ __forceinline__ void store_to(T* output, int32_t row) const {
    T* const first = output + first_output(row);
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
      if (inside(i)) store(first + step(i), v_[i]);
    }
  }

  /// v = T((v - mean) * scale * gamma + beta).
  __device__ __forceinline__ void normalize_row(Team<kOneWarp>& team) {
    Moments const m =
        moments<Producer>(v_, team, args_.cols, args_.epsilon, [&](int i) { return inside(i); });
    keep_packed(v_);
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
      V const gamma = load_parameter(gamma_, i);
      V beta;
      if constexpr (Producer::kNorm == Norm::kLayer) beta = load_parameter(beta_, i);
      normalize_vector<Producer>(v_[i], m, gamma, beta);
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
    for (int i = 0; i < kVecs; ++i) {
      int32_t const slot = kKeepsSlots ? slot_[i] : slot_of(outliers, i);
      outliers.template take<kPredicated>(slot, buffer, v_[i]);
    }
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
  // A layer norm has no registers to spare.
  static constexpr bool kKeepsSlots = Producer::kNorm != Norm::kLayer;
  static constexpr bool kPredicated = Producer::kInputs == 1 && (kKeepsSlots || kAhead);

  template <class Outliers>
  __device__ __forceinline__ int32_t slot_of(Outliers const& outliers, int i) const {
    return inside(i) ? outliers.slot(i * lanes_ + lane_) : kNoSlot;
  }

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
  int32_t slot_[kKeepsSlots ? kVecs : 1];
};

}  // namespace graphopt::mixq
