// A row in the registers of the threads that share it.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/ptx.cuh"
#include "common/reduce.cuh"
#include "common/vec.cuh"
#include "mixq/quantize/args.cuh"
#include "mixq/quantize/codes.cuh"
#include "mixq/quantize/outliers.cuh"
#include "mixq/quantize/packed.cuh"

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

/// Vector i of lane l holds elements from (i * lanes + l) * kSize. Vectors past the end of the row hold zeros until
/// they are normalized; from then on only `inside` ones count.
template <class T, class Producer, bool kOneWarp, int kVecs>
class RegisterRow {
 public:
  using V = Vec<T>;
  static constexpr int kSize = V::kSize;

  /// `staging` [stages, kInputs, kVecs, lanes] vectors of shared memory: rows that were read ahead. Each thread writes
  /// and reads its own vectors only, so no barrier is needed.
  __device__ __forceinline__ RegisterRow(QuantizeArgs<T> const& args, int lane, int lanes, uint4* staging)
      : args_(args), lane_(lane), lanes_(lanes), staging_(staging + lane), left_(args.cols - lane * kSize) {}

  /// Read the inputs. All loads are issued before the first use.
  __device__ __forceinline__ void load(int64_t row) {
    set_row(row);
    load_from(args_.x, v_);
    if constexpr (Producer::kInputs == 2) load_from(args_.other, second_);
  }

  /// Start to copy a row to `stage`. A row past the end makes an empty group, so that groups can be counted.
  __device__ __forceinline__ void read_ahead(int64_t row, int stage) const {
    if (row < args_.rows) {
      int64_t const from = first_of(row);
      copy_ahead(args_.x + from, staged(stage, 0));
      if constexpr (Producer::kInputs == 2) copy_ahead(args_.other + from, staged(stage, 1));
    }
    cp_async_commit();
  }

  /// Read the inputs from a stage whose copies have arrived.
  __device__ __forceinline__ void take(int64_t row, int stage) {
    set_row(row);
    take_from(staged(stage, 0), v_);
    if constexpr (Producer::kInputs == 2) take_from(staged(stage, 1), second_);
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

  __device__ __forceinline__ void store_to(T* output) const {
    T* first = output + first_;
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
      if (inside(i)) store(first + step(i), v_[i]);
    }
  }

  /// v = T((v - mean) * scale * gamma + beta).
  __device__ __forceinline__ void normalize_row(RowReducer<kOneWarp>& reducer) {
    float const per_element = 1.0f / static_cast<float>(args_.cols);
    Moments m{0.0f, 0.0f};
    if constexpr (Producer::kNorm == Norm::kLayer) m.mean = reducer.template all<Add>(sum()) * per_element;
    keep_packed(v_);
    float const squares = squares_around(m.mean);
    int32_t const first = opaque(lane_ * kSize);
    // Arrives while threads meet; where the mean takes a reduction of its own, registers are worth more than that.
    constexpr bool kGammaEarly = Producer::kNorm == Norm::kRms;
    V gamma[kGammaEarly ? kVecs : 1];
    if constexpr (kGammaEarly) {
#pragma unroll
      for (int i = 0; i < kVecs; ++i) gamma[i] = load_pinned(args_.gamma + parameter(first, i));
    }
    m.scale = rsqrtf(fmaf(reducer.template all<Add>(squares), per_element, args_.epsilon));
    keep_packed(v_);
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
      V const scale = kGammaEarly ? gamma[kGammaEarly ? i : 0] : load_cached(args_.gamma + parameter(first, i));
      V beta;
      if constexpr (Producer::kNorm == Norm::kLayer) beta = load_cached(args_.beta + parameter(first, i));
      float value[kSize];
#pragma unroll
      for (int e = 0; e < kSize; ++e) {
        value[e] = normalize<Producer>(v_[i].get(e), m, scale.get(e), beta.get(e));
      }
      v_[i].set(value);
    }
  }

  /// Move the outliers out of the row; they can be gathered after the next reduction.
  template <class Outliers>
  __device__ __forceinline__ void take_outliers(Outliers const& outliers, int buffer) {
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
      if (slot_[i] != kNoSlot) outliers.take(slot_[i], buffer, v_[i]);
    }
  }

  __device__ __forceinline__ void quantize(RowReducer<kOneWarp>& reducer) {
    Magnitude<T> magnitude;
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
      if (Producer::kNorm == Norm::kNone || inside(i)) magnitude.add(v_[i]);
    }
    float const amax = reducer.template all<MaxNan>(magnitude.value());
    if (lane_ == 0) args_.sx[row_] = __fdiv_rn(amax, args_.code_max);
    RowScale const scale = row_scale(amax, args_.code_max);
    if (args_.code_max != kEightBitMax) return pack(scale);
    int8_t* xq = args_.xq + first_;
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
      typename Codes<T>::Packed const codes = Codes<T>::make(v_[i], scale);
      if (inside(i)) *reinterpret_cast<typename Codes<T>::Packed*>(xq + step(i)) = codes;
    }
  }

  /// Write 4-bit codes.
  __device__ __forceinline__ void pack(RowScale scale) const {
    int8_t* const row = args_.xq + row_ * args_.row_bytes;
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
      typename Codes<T>::Packed codes = Codes<T>::make(v_[i], scale);
      if (!inside(i)) codes = {};
      store_packed<T>(row, lane_ + i * lanes_, codes, args_.cols);
    }
  }

  __device__ __forceinline__ T* xo() const { return args_.xo + row_ * args_.capacity; }

 private:
  /// Channels between this lane's first vector and vector i.
  __device__ __forceinline__ int32_t step(int i) const { return i * lanes_ * kSize; }
  __device__ __forceinline__ bool inside(int i) const { return step(i) < left_; }

  /// Index of vector i in gamma and beta; 0 past the end, so that loads need no branch and can be in flight together.
  __device__ __forceinline__ int32_t parameter(int32_t first, int i) const { return inside(i) ? step(i) + first : 0; }

  /// Index in [M, K] of this lane's first element of a row.
  __device__ __forceinline__ int64_t first_of(int64_t row) const { return row * args_.cols + lane_ * kSize; }
  __device__ __forceinline__ void set_row(int64_t row) {
    row_ = row;
    first_ = first_of(row);
  }

  __device__ __forceinline__ uint4* staged(int stage, int input) const {
    return staging_ + (stage * Producer::kInputs + input) * (kVecs * lanes_);
  }

  __device__ __forceinline__ void load_from(T const* input, V (&v)[kVecs]) const {
    T const* first = input + first_;
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
      v[i] = V{};
      if (inside(i)) v[i] = load_streaming(first + step(i));
    }
  }

  __device__ __forceinline__ void copy_ahead(T const* first, uint4* stage) const {
#pragma unroll
    for (int i = 0; i < kVecs; ++i) cp_async_16(shared_address(stage + i * lanes_), first + step(i), inside(i));
  }

  __device__ __forceinline__ void take_from(uint4 const* stage, V (&v)[kVecs]) const {
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
      uint4 const q = stage[i * lanes_];
      v[i].word[0] = q.x, v[i].word[1] = q.y, v[i].word[2] = q.z, v[i].word[3] = q.w;
    }
  }

  /// This thread's part of the row's sum.
  __device__ __forceinline__ float sum() const {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
#pragma unroll
      for (int e = 0; e < kSize; ++e) sum += v_[i].get(e);
    }
    return sum;
  }

  /// This thread's part of the sum of (v - mean)^2.
  __device__ __forceinline__ float squares_around(float mean) const {
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
      float part = 0.0f;
#pragma unroll
      for (int e = 0; e < kSize; ++e) {
        float const centered = v_[i].get(e) - mean;
        part = fmaf(centered, centered, part);
      }
      // Zeros past the end add nothing unless the mean was subtracted from them.
      if (Producer::kNorm != Norm::kLayer || inside(i)) squares += part;
    }
    return squares;
  }

  QuantizeArgs<T> const& args_;
  int lane_;
  int lanes_;
  uint4* staging_;  // this lane's
  int32_t left_;    // channels from this lane's first to the end of the row
  int64_t row_ = 0;
  int64_t first_ = 0;
  V v_[kVecs];
  V second_[Producer::kInputs == 2 ? kVecs : 1];
  int32_t slot_[kVecs];
};

}  // namespace graphopt::mixq
