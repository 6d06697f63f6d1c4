// Kernel for one token and trained codebooks of 4096 entries of eight, two codes a vector: products are looked up.
//
// As kernel_table.cuh, but the products of a group of eight columns with both codebooks are many, 8192. They are
// float16, for eight groups at a time, times a power of two that keeps them in range. A lane takes a whole row of a
// slice, 24 bytes of codes, and needs nobody's help to add it up.
//
//   table [residual][entry][group]: 16 bytes for an entry; pairs of groups change places with bits 3 and 4 of its
//   number, so that lanes that look up the same group at once meet as seldom as chance allows
#pragma once

#include <cstdint>

#include "vq/linear/kernel_table.cuh"

namespace graphopt::vq {

/// Sizes for Weights = BookWeights<T, 8, 12, 2, false, ...>.
template <class Weights_>
struct WideShape {
  using Weights = Weights_;
  using T = typename Weights::T;
  static_assert(Weights::Codes::kBits == 12 && Weights::Codes::kVector == 8 && Weights::Codes::kResiduals == 2);
  static constexpr bool kTiled = false;
  static constexpr int kRows = kTableThreads;  // of a unit
  static constexpr int kGroups = 8;
  static constexpr int kColumns = 8 * kGroups;  // of a slice
  static constexpr int kEntries = 2 << 12;
  static constexpr int kTableBytes = kEntries * kGroups * 2;
  static constexpr int kDepth = 3;
  static constexpr int kStage = 32 * kRows;
  static_assert(kDepth * kStage <= kTableAlignment - 1024, "beside what the system keeps");
  static constexpr int kSharedBytes = kTableAlignment + kTableBytes;
};

/// Codes of the units of a block on their way: 32 bytes of each row, in which a slice's 24 are the first or the last
/// ones. Slots belong to a warp.
template <class Shape>
class WideQueue : public UnitRing<typename Shape::T, TablePlace<false, Shape::kRows>, Shape::kStage, Shape::kDepth> {
  using T = typename Shape::T;
  using Ring = UnitRing<T, TablePlace<false, Shape::kRows>, Shape::kStage, Shape::kDepth>;
  using Ring::after, Ring::ahead_, Ring::args_, Ring::kDepth, Ring::read_, Ring::write_;

 public:
  __device__ __forceinline__ WideQueue(TableArgs<T> const& args, TableShare share, uint32_t shared)
      : Ring(args, share),
        lane_(static_cast<int>(threadIdx.x) % 32),
        first_(static_cast<int>(threadIdx.x) / 32 * 32),
        slots_(shared + first_ * 32) {
#pragma unroll
    for (int d = 0; d < kDepth - 1; ++d) load();
  }

  /// This lane's codes of the next unit, which is of slice `slice`.
  __device__ __forceinline__ void take(uint32_t (&word)[6], int slice) {
    __syncwarp();  // everyone has read what is overwritten
    load();
    cp_async_wait<kDepth - 1>();
    __syncwarp();
    uint32_t chunk[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) load_shared(chunk[i], slots_ + read_ + slot(lane_, i));
    bool const odd = slice % 2 != 0;
#pragma unroll
    for (int w = 0; w < 6; ++w) word[w] = odd ? chunk[(w + 2) / 4][(w + 2) % 4] : chunk[w / 4][w % 4];
    read_ = after(read_);
  }

 private:
  /// Where 16 bytes of a row are; lanes that read at once find them at different banks.
  __device__ __forceinline__ static int slot(int row, int chunk) { return row * 32 + (chunk ^ (row / 4 % 2)) * 16; }

  __device__ __forceinline__ void load() {
    this->start([this] { copy(); });
  }

  /// Rows outside W are read as its last one.
  __device__ __forceinline__ void copy() const {
    int const chunk = lane_ % 2, byte = ahead_.slice / 2 * 48 + ahead_.slice % 2 * 16 + chunk * 16;
    bool const valid = byte < args_.row_bytes;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int const row = half * 16 + lane_ / 2, n = min(ahead_.row + first_ + row, args_.n - 1);
      cp_async_16(slots_ + write_ + slot(row, chunk),
                  offset_by_product(args_.codes, n, args_.row_bytes) + (valid ? byte : 0), valid);
    }
  }

  int const lane_, first_;  // row of the warp
  uint32_t const slots_;
};

template <class Shape>
class WideProduct {
  using T = typename Shape::T;
  using Place = TablePlace<false, Shape::kRows>;
  static constexpr int kTiles = Shape::kEntries / 16 / kTableWarps;  // of 16 entries that a warp multiplies
  static constexpr int kInFlight = 16;                               // tiles of entries on their way

 public:
  __device__ __forceinline__ WideProduct(TableArgs<T> const& args, uint32_t shared)
      : args_(args),
        share_(TableShare::of<false>(args)),
        queue_(args, share_, shared),
        table_((shared + Shape::kDepth * Shape::kStage + kTableAlignment - 1) / kTableAlignment * kTableAlignment),
        lane_(static_cast<int>(threadIdx.x) % 32),
        warp_(static_cast<int>(threadIdx.x) / 32) {}

  __device__ __forceinline__ void run() {
    wait_for_predecessor();
    release_successor();
    Place now = Place::of(args_, share_.begin);
    for (int left = share_.count; left > 0;) {
      int const count = min(now.run(args_), left);
      float const unit = fill_table(now.slice);
#pragma unroll 1
      for (int u = 0; u < count; ++u) {
        float const sum = look_up(now.slice) * unit;
        int const n = now.row + u * Shape::kRows + static_cast<int>(threadIdx.x);
        if (n < args_.n) args_.sums[int64_t{now.slice} * args_.n + n] = sum;
      }
      left -= count;
      now = {now.slice + 1, 0};
      __syncthreads();  // everyone has left the table
    }
  }

 private:
  /// Products of a slice's x with all entries, times a power of two; returns its inverse.
  __device__ __forceinline__ float fill_table(int slice) {
    constexpr float kMost = 32768.0f, kEnough = 0.0625f, kStep = 4096.0f;
    constexpr int kTries = 4;
    int const column = slice * Shape::kColumns + lane_ / 4 * 8 + lane_ % 4 * 2;
    uint32_t const x = column < args_.k ? *reinterpret_cast<uint32_t const*>(args_.x + column) : 0;
    float const start = first_scale(x);
    float scale = start != 0.0f ? start : 1.0f;
    for (int i = 1;; ++i) {
      float const largest = make_table(x, scale);
      bool const overflow = __syncthreads_or(largest > kMost) != 0;
      bool const enough = __syncthreads_or(largest >= kEnough) != 0;
      if ((enough && !overflow) || start == 0.0f || i == kTries) return 1.0f / scale;
      scale = overflow ? scale / kStep : scale * kStep;
    }
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

  /// The largest |product| of this lane's, scaled.
  __device__ __forceinline__ float make_table(uint32_t x, float scale) const {
    auto const* const books = reinterpret_cast<uint32_t const*>(args_.codebooks) + warp_ * kTiles * 64 + lane_;
    float largest = 0.0f;
    int const g = lane_ / 4, t = lane_ % 4;
#pragma unroll 1
    for (int first = 0; first < kTiles; first += kInFlight) {
      uint32_t entries[kInFlight][2];  // of rows g and g + 8 of a tile, elements 2 t and 2 t + 1
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        entries[i][0] = __ldg(books + (first + i) * 64);
        entries[i][1] = __ldg(books + (first + i) * 64 + 32);
      }
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        float c[4] = {};
        mma_eight<T>(c, from_half_pair<T>(entries[i][0]), from_half_pair<T>(entries[i][1]), x);
#pragma unroll
        for (float& product : c) {
          product *= scale;
          largest = fmaxf(largest, fabsf(product));
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          int const entry = (warp_ * kTiles + first + i) * 16 + 8 * h + g;
          store_word(table_ + entry * 16 + (t ^ entry / 8 % 4) * 4, round_pair<__half>(c[2 * h], c[2 * h + 1]));
        }
      }
    }
    return largest;
  }

  /// The sum of what this lane's codes of the next unit name.
  __device__ __forceinline__ float look_up(int slice) {
    uint32_t word[6];
    queue_.take(word, slice);
    float sums[2] = {};
#pragma unroll
    for (int i = 0; i < 2 * Shape::kGroups; ++i) {
      int const bit = 12 * i, at = bit / 32, shift = bit % 32, group = i / 2;
      // The code in bits 4 to 15.
      uint32_t const code =
          shift < 4 ? word[at] << (4 - shift) : __funnelshift_r(word[at], word[at < 5 ? at + 1 : at], shift - 4);
      uint32_t const pair = (code >> 5 & 12) ^ (table_ + group / 2 * 4);
      uint16_t product;
      asm volatile("ld.shared.u16 %0, [%1];"
                   : "=h"(product)
                   : "r"(((code & 0xfff0u) | pair) + i % 2 * (Shape::kTableBytes / 2) + group % 2 * 2));
      sums[i % 2] += __half2float(__ushort_as_half(product));
    }
    return sums[0] + sums[1];
  }

  TableArgs<T> const& args_;
  TableShare const share_;
  WideQueue<Shape> queue_;
  uint32_t const table_;
  int const lane_, warp_;
};

template <class Shape>
__global__ void __launch_bounds__(kTableThreads, 1) linear_wide_table(TableArgs<typename Shape::T> const args) {
  extern __shared__ __align__(128) char shared[];
  WideProduct<Shape>(args, shared_address(shared)).run();
}

}  // namespace graphopt::vq
