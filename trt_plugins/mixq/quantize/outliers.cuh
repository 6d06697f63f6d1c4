// The outlier channels of a row: kept out of the codes, gathered into xo.
//
// Few vectors (16 bytes) of a row hold an outlier channel. Each of these has a record in shared memory: a mask that
// clears the vector's outliers and, for every row in work, a copy of the vector as it was, out of which any thread can
// gather. A thread knows the slots of its vectors from the start, as they
// are the same for all rows: an ordinary vector costs one predicate.
#pragma once

#include <cstdint>

#include "common/ptx.cuh"
#include "common/vec.cuh"

namespace graphopt::mixq {

constexpr int32_t kNoSlot = -1;

template <class T>
class OutlierSet {
 public:
  static constexpr int kSize = Vec<T>::kSize;

  /// `shared`: outlier_bytes(vectors, capacity, buffers).
  __device__ __forceinline__ OutlierSet(uint4* shared, int32_t vectors, int32_t capacity, int buffers)
      : capacity_(capacity),
        vectors_(vectors),
        record_(1 + buffers),
        records_(shared),
        sources_(reinterpret_cast<int32_t*>(shared + record_ * capacity)),
        places_(sources_ + capacity),
        slots_(places_ + capacity) {}

  /// Start to fill from idx [C], ascending, padded with -1; all `threads` threads of the block call it.
  __device__ __forceinline__ void read(int32_t const* idx, int thread, int threads) {
    for (int32_t c = thread; c < capacity_; c += threads) sources_[c] = idx[c];
    for (int32_t v = thread; v < vectors_; v += threads) slots_[v] = kNoSlot;
  }

  /// Finish, after a barrier and before another.
  __device__ __forceinline__ void build(int thread, int threads) {
#pragma unroll 1
    for (int32_t c = thread; c < capacity_; c += threads) {
      int32_t const vector = vector_of(c);
      if (vector == kNoSlot) places_[c] = kNoSlot;
      if (vector == kNoSlot || (c > 0 && vector_of(c - 1) == vector)) continue;
      Vec<T> mask;
#pragma unroll
      for (int w = 0; w < 4; ++w) mask.word[w] = ~0u;
#pragma unroll 1
      for (int32_t end = c; end < capacity_ && vector_of(end) == vector; ++end) {
        int32_t const cleared = sources_[end] % kSize;
        places_[end] = c * record_ * kSize + cleared;
#pragma unroll
        for (int e = 0; e < kSize; ++e) {
          if (e == cleared) mask.clear(e);
        }
      }
      records_[c * record_] = make_uint4(mask.word[0], mask.word[1], mask.word[2], mask.word[3]);
      slots_[vector] = c * record_;
    }
  }

  /// Slot of a vector of the row, or kNoSlot.
  __device__ __forceinline__ int32_t slot(int32_t vector) const { return slots_[vector]; }

  /// Keep a copy of `v` and clear its outliers, if it has a slot.
  ///   kPredicated: without a branch, which some lane of nearly every warp takes. The masks of several vectors are in
  ///   registers together then, which kernels with two inputs have not left.
  template <bool kPredicated>
  __device__ __forceinline__ void take(int32_t slot, int buffer, Vec<T>& v) const {
    if constexpr (kPredicated) {
      uint32_t const record = shared_address(records_ + slot);
      asm volatile(
          "{.reg .pred taken; .reg .b32 m0, m1, m2, m3;\n"
          "setp.ge.s32 taken, %4, 0;\n"
          "@taken st.shared.v4.b32 [%6], {%0, %1, %2, %3};\n"
          "@taken ld.shared.v4.b32 {m0, m1, m2, m3}, [%5];\n"
          "@taken and.b32 %0, %0, m0;\n@taken and.b32 %1, %1, m1;\n"
          "@taken and.b32 %2, %2, m2;\n@taken and.b32 %3, %3, m3;}"
          : "+r"(v.word[0]), "+r"(v.word[1]), "+r"(v.word[2]), "+r"(v.word[3])
          : "r"(slot), "r"(record), "r"(record + 16 * (1 + buffer))
          : "memory");
    } else if (slot != kNoSlot) {
      records_[slot + 1 + buffer] = make_uint4(v.word[0], v.word[1], v.word[2], v.word[3]);
      uint4 const mask = records_[slot];
      v.word[0] &= mask.x, v.word[1] &= mask.y, v.word[2] &= mask.z, v.word[3] &= mask.w;
    }
  }

  /// xo [C] of a row whose vectors have all been taken, by the `lanes` threads that share it.
  __device__ __forceinline__ void gather(T* xo, int buffer, int lane, int lanes) const {
    T const* values = reinterpret_cast<T const*>(records_ + 1 + buffer);
#pragma unroll 1
    for (int32_t c = lane; c < capacity_; c += lanes) {
      int32_t const place = places_[c];
      xo[c] = place == kNoSlot ? from_float<T>(0.0f) : values[place];
    }
  }

 private:
  /// The vector that holds outlier `c`; kNoSlot for padding, and for a channel that the row does not have.
  __device__ __forceinline__ int32_t vector_of(int32_t c) const {
    uint32_t const vector = static_cast<uint32_t>(sources_[c]) / kSize;
    return vector < static_cast<uint32_t>(vectors_) ? static_cast<int32_t>(vector) : kNoSlot;
  }

  int32_t capacity_;
  int32_t vectors_;
  int32_t record_;    // vectors of a record: a mask and the copies
  uint4* records_;    // [capacity, record_], defined for slots in use
  int32_t* sources_;  // [capacity]: idx
  int32_t* places_;   // [capacity]: of the outlier's value in the first copies; kNoSlot: there is none
  int32_t* slots_;    // [vectors]: where the vector's record starts
};

}  // namespace graphopt::mixq
