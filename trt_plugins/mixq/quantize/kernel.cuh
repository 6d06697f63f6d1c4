// One launch from the inputs of the producer to codes, scales and outliers; inputs are read once where a row fits in
// the registers of a block.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/reduce.cuh"
#include "common/vec.cuh"
#include "mixq/quantize/policy.h"
#include "mixq/quantize/producer.cuh"

namespace graphopt::mixq {

constexpr float kCodeMax = 127.0f;

/// QuantizeParams with its element type known.
template <class T>
struct QuantizeArgs {
  int64_t rows;                     // M
  int32_t cols;                     // K
  int32_t capacity;                 // C
  T const* __restrict__ x;          // [M, K]
  T const* __restrict__ other;      // [M, K]
  T const* __restrict__ gamma;      // [K]
  T const* __restrict__ beta;       // [K]
  int32_t const* __restrict__ idx;  // [C]
  float epsilon;
  int8_t* __restrict__ xq;  // [M, K]
  float* __restrict__ sx;   // [M]
  T* __restrict__ xo;       // [M, C]
  T* __restrict__ sum;      // [M, K] or null
  T* __restrict__ y;        // [M, K] or null
};

/// Statistics of a norm: y = (v - mean) * scale * gamma + beta.
struct Moments {
  float mean;
  float scale;
};

template <class Producer>
__device__ __forceinline__ float normalize(float v, Moments m, float gamma, float beta) {
  if constexpr (Producer::kNorm == Norm::kRms) return v * m.scale * gamma;
  return (v - m.mean) * m.scale * gamma + beta;
}

/// Scale of a row and how its codes are made.
struct RowScale {
  float inverse;  // 127 / amax; 0 for a row of zeros
  bool codes;     // false: the row is not finite (or too small to invert) and all its codes are 0
};

__device__ __forceinline__ RowScale row_scale(float amax) {
  float const inverse = amax == 0.0f ? 0.0f : __fdiv_rn(kCodeMax, amax);
  return {inverse, isfinite(amax) && isfinite(inverse)};
}

/// rint(x * inverse) in the low byte. Adding 1.5 * 2^23 rounds to an integer, ties to even, and leaves it in the low
/// bits in two's complement: two instructions instead of a conversion and a clamp. |x * inverse| <= 127 (1 + 2^-22).
__device__ __forceinline__ uint32_t code(float x, float inverse) {
  constexpr float kRound = 12582912.0f;
  return __float_as_uint(__fadd_rn(__fmul_rn(x, inverse), kRound));
}

__device__ __forceinline__ uint32_t pack_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}

/// The outlier set as a bit per channel, in shared memory, with the slot in xo of the first outlier of each 32
/// channels: membership and slot of a channel cost one read each, and xo needs no second read of the row.
class OutlierMask {
 public:
  /// `shared`: bytes_for(cols) bytes.
  __device__ __forceinline__ OutlierMask(void* shared, int32_t cols)
      : bits_(static_cast<uint32_t*>(shared)), first_(bits_ + words(cols) + 1), used_(bits_ + words(cols)) {}

  __host__ __device__ static int32_t words(int32_t cols) { return (cols + 31) / 32; }
  __host__ __device__ static size_t bytes_for(int32_t cols) { return (2 * words(cols) + 1) * sizeof(uint32_t); }

  /// Fill from idx [C]; all `threads` threads of the block call it. Ends with a barrier.
  __device__ __forceinline__ void build(int32_t const* idx, int32_t capacity, int32_t cols, int thread, int threads) {
    for (int32_t w = thread; w <= words(cols); w += threads) bits_[w] = 0;
    __syncthreads();
    for (int32_t c = thread; c < capacity; c += threads) {
      uint32_t const channel = static_cast<uint32_t>(idx[c]);
      if (channel >= static_cast<uint32_t>(cols)) continue;
      atomicOr(&bits_[channel / 32], 1u << (channel % 32));
      if (c == 0 || static_cast<uint32_t>(idx[c - 1]) / 32 != channel / 32) first_[channel / 32] = c;
      if (c + 1 == capacity || idx[c + 1] < 0) *used_ = c + 1;
    }
    __syncthreads();
  }

  /// Outliers in the set; slots from here to the capacity are padding.
  __device__ __forceinline__ int32_t used() const { return static_cast<int32_t>(*used_); }

  /// Bits of `kCount` channels from `channel`, a multiple of kCount; kCount divides 32.
  template <int kCount>
  __device__ __forceinline__ uint32_t bits(int32_t channel) const {
    return (bits_[channel / 32] >> (channel % 32)) & ((1u << kCount) - 1u);
  }

  /// Slot in xo of the first outlier at or after `channel` within its 32; only if there is one.
  __device__ __forceinline__ int32_t slot(int32_t channel) const {
    uint32_t const before = bits_[channel / 32] & ((1u << (channel % 32)) - 1u);
    return static_cast<int32_t>(first_[channel / 32]) + __popc(before);
  }

 private:
  uint32_t* bits_;   // [words]
  uint32_t* first_;  // [words], defined where bits_ is not 0
  uint32_t* used_;   // [1]
};

/// A row of K elements spread over the threads that share it: vector i of lane l holds elements from
/// (i * lanes + l) * kSize.
template <class T, class Producer, bool kOneWarp, int kVecs>
class RegisterRow {
 public:
  using V = Vec<T>;
  static constexpr int kSize = V::kSize;

  __device__ __forceinline__ RegisterRow(QuantizeArgs<T> const& args, int lane, int lanes)
      : args_(args), lane_(lane), lanes_(lanes) {}

  /// Read the inputs: v = T(producer's elementwise part). All loads are issued before the first use.
  __device__ __forceinline__ void load(int64_t row) {
    row_ = row;
    T const* x = args_.x + row * args_.cols;
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
      v_[i] = V{};
      if (inside(i)) v_[i] = load_streaming(x + channel(i));
    }
    if constexpr (Producer::kInputs == 2) {
      T const* other = args_.other + row * args_.cols;
#pragma unroll
      for (int i = 0; i < kVecs; ++i) {
        second_[i] = V{};
        if (inside(i)) second_[i] = load_streaming(other + channel(i));
      }
    }
  }

  /// Turn the inputs into what is quantized (or normalized), rounded to T.
  __device__ __forceinline__ void combine() {
    if constexpr (!std::is_base_of_v<Plain, Producer>) {
#pragma unroll
      for (int i = 0; i < kVecs; ++i) {
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
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
      if (inside(i)) store(output + row_ * args_.cols + channel(i), v_[i]);
    }
  }

  /// v = T((v - mean) * scale * gamma + beta).
  __device__ __forceinline__ void normalize_row(RowReducer<kOneWarp>& reducer) {
    Moments const m = moments(reducer);
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
      if (!inside(i)) continue;
      V const gamma = load_cached(args_.gamma + channel(i));
      V beta;
      if constexpr (Producer::kNorm == Norm::kLayer) beta = load_cached(args_.beta + channel(i));
      float value[kSize];
#pragma unroll
      for (int e = 0; e < kSize; ++e) {
        value[e] = normalize<Producer>(v_[i].get(e), m, gamma.get(e), beta.get(e));
      }
      v_[i].set(value);
    }
  }

  /// Write the outlier channels to xo and zero them in v, then pad xo.
  __device__ __forceinline__ void extract_outliers(OutlierMask const& mask) {
    T* xo = args_.xo + row_ * args_.capacity;
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
      if (!inside(i)) continue;
      uint32_t const bits = mask.bits<kSize>(channel(i));
      if (bits == 0) continue;
      int32_t slot = mask.slot(channel(i));
#pragma unroll
      for (int e = 0; e < kSize; ++e) {
        if ((bits >> e & 1u) == 0) continue;
        if (slot < args_.capacity) xo[slot] = v_[i].raw(e);  // holds unless idx is not ascending
        ++slot;
        v_[i].clear(e);
      }
    }
    for (int32_t c = mask.used() + lane_; c < args_.capacity; c += lanes_) xo[c] = from_float<T>(0.0f);
  }

  __device__ __forceinline__ void quantize(RowReducer<kOneWarp>& reducer) {
    float amax = 0.0f;
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
#pragma unroll
      for (int e = 0; e < kSize; ++e) amax = MaxNan::apply(amax, fabsf(v_[i].get(e)));
    }
    amax = reducer.template all<MaxNan>(amax);
    if (lane_ == 0) args_.sx[row_] = __fdiv_rn(amax, kCodeMax);
    RowScale const scale = row_scale(amax);
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
      if (inside(i)) store_codes(i, scale);
    }
  }

 private:
  __device__ __forceinline__ int32_t channel(int i) const { return (i * lanes_ + lane_) * kSize; }
  __device__ __forceinline__ bool inside(int i) const { return channel(i) < args_.cols; }

  __device__ __forceinline__ Moments moments(RowReducer<kOneWarp>& reducer) const {
    float const count = static_cast<float>(args_.cols);
    Moments m{0.0f, 0.0f};
    if constexpr (Producer::kNorm == Norm::kLayer) {
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < kVecs; ++i) {
#pragma unroll
        for (int e = 0; e < kSize; ++e) sum += v_[i].get(e);
      }
      m.mean = reducer.template all<Add>(sum) / count;
    }
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < kVecs; ++i) {
      if (!inside(i)) continue;
#pragma unroll
      for (int e = 0; e < kSize; ++e) {
        float const centered = v_[i].get(e) - m.mean;
        squares += centered * centered;
      }
    }
    m.scale = 1.0f / sqrtf(reducer.template all<Add>(squares) / count + args_.epsilon);
    return m;
  }

  __device__ __forceinline__ void store_codes(int i, RowScale scale) const {
    uint32_t packed[kSize / 4];
#pragma unroll
    for (int w = 0; w < kSize / 4; ++w) {
      uint32_t c[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) c[e] = code(v_[i].get(4 * w + e), scale.inverse);
      packed[w] = scale.codes ? pack_bytes(c[0], c[1], c[2], c[3]) : 0u;
    }
    int8_t* xq = args_.xq + row_ * args_.cols + channel(i);
    if constexpr (kSize == 8) {
      *reinterpret_cast<uint2*>(xq) = make_uint2(packed[0], packed[1]);
    } else {
      *reinterpret_cast<uint32_t*>(xq) = packed[0];
    }
  }

  QuantizeArgs<T> const& args_;
  int lane_;
  int lanes_;
  int64_t row_ = 0;
  V v_[kVecs];
  V second_[Producer::kInputs == 2 ? kVecs : 1];
};

/// Block: (threads of a row, rows of a block). Shared memory: OutlierMask::bytes_for(K).
template <class T, class Producer, bool kOneWarp, int kVecs>
__global__ void __launch_bounds__(kOneWarp ? kWarp * kWarpRowsPerBlock : kMaxThreads)
    quantize_register_rows(QuantizeArgs<T> const args) {
  extern __shared__ uint32_t shared[];
  __shared__ float scratch[2 * kWarp];
  OutlierMask mask(shared, args.cols);
  RowReducer<kOneWarp> reducer(scratch);
  RegisterRow<T, Producer, kOneWarp, kVecs> row(args, static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x));

  int64_t const stride = int64_t{gridDim.x} * blockDim.y;
  int64_t m = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (m < args.rows) row.load(m);  // in flight while the mask is built
  mask.build(args.idx, args.capacity, args.cols, static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x),
             static_cast<int>(blockDim.x * blockDim.y));
  while (m < args.rows) {
    row.combine();
    if constexpr (Producer::kInputs == 2 && Producer::kNorm != Norm::kNone) {
      if (args.sum != nullptr) row.store_to(args.sum);
    }
    if constexpr (Producer::kNorm != Norm::kNone) row.normalize_row(reducer);
    if (args.y != nullptr) row.store_to(args.y);
    row.extract_outliers(mask);
    row.quantize(reducer);
    m += stride;
    if (m < args.rows) row.load(m);
  }
}

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

/// Any K and any alignment: a block per row, inputs read again for every pass.
template <class T, class Producer>
__global__ void __launch_bounds__(kRereadThreads) quantize_reread_rows(QuantizeArgs<T> const args) {
  __shared__ float scratch[2 * kWarp];
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
    if (lane == 0) args.sx[m] = __fdiv_rn(amax, kCodeMax);
    RowScale const scale = row_scale(amax);
    for (int32_t k = lane; k < args.cols; k += lanes) {
      bool const zero = !scale.codes || slot_of(k) >= 0;
      args.xq[base + k] = zero ? int8_t{0} : static_cast<int8_t>(code(to_float(produced(k)), scale.inverse) & 0xffu);
    }
  }
}

}  // namespace graphopt::mixq
