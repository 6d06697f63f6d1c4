// Kernel for one token and trained codebooks of 256 entries: products instead of entries are looked up.
//
// The products of a slice's 256 columns of x with all entries, 16384 float32, are made once, by mma.sync. A code then
// costs a look-up of 4 bytes instead of an entry's 8 or 16. Where codebooks are those of tiles, the products of the
// next slice are made while others still look up in those of this one.
//
//   table [code][residual][group of v columns]: 256 bytes for a code, so that a code is one byte of an address; lanes
//   look up in groups of their own, in an order of their own, so that no two of them meet at a bank
#pragma once

#include <cstdint>
#include <type_traits>

#include "vq/linear/table_tiles.cuh"
#include "vq/linear/table_walk.cuh"

namespace graphopt::vq {

/// Sizes for Weights = BookWeights<T, v, 8, r, kTiled, ...> with v / r = 4.
template <class Weights_>
struct TableShape {
  using Weights = Weights_;
  using T = typename Weights::T;
  static constexpr bool kTiled = Weights::kTiled;
  static constexpr int kVector = Weights::Codes::kVector;
  static constexpr int kResiduals = Weights::Codes::kResiduals;
  static_assert(Weights::Codes::kBits == 8 && kVector == 4 * kResiduals && kVector <= 8);
  static constexpr int kRows = kTableRows;  // of a unit
  static constexpr int kColumns = 256;      // of a slice
  static constexpr int kGroups = kColumns / kVector;
  static constexpr int kEntryTiles = kResiduals * 256 / 8 / kTableWarps;  // of 8 entries that a warp multiplies
  static constexpr int kGroupTiles = kGroups / 8;
  static constexpr int kTables = kTiled ? 2 : 1;
  static constexpr int kIdle = 6;  // see table_blocks
  static constexpr int kTableBytes = 64 * 1024;
  using Queue = std::conditional_t<kTiled, TileQueue<T, 3>, UnitQueue<T, 6>>;
  static_assert(Queue::kBytes <= kTableAlignment - 1024, "beside what the system keeps");
  /// From the address 0 of shared memory on, or from a little later.
  static constexpr int kSharedBytes = kTableAlignment + kTables * kTableBytes;
};

template <class Shape>
class TableProduct {
  using T = typename Shape::T;
  using Place = TablePlace<Shape::kTiled>;
  static constexpr int kResiduals = Shape::kResiduals;
  static constexpr int kEntryTiles = Shape::kEntryTiles;
  static constexpr int kGroupTiles = Shape::kGroupTiles;
  static constexpr int kBases = 16 / kResiduals;  // groups of a lane

 public:
  __device__ __forceinline__ TableProduct(TableArgs<T> const& args, uint32_t shared)
      : args_(args),
        share_(TableShare::of<Shape::kTiled>(args)),
        queue_(args, share_, shared),
        table_((shared + Shape::Queue::kBytes + kTableAlignment - 1) / kTableAlignment * kTableAlignment),
        lane_(static_cast<int>(threadIdx.x) % 32),
        warp_(static_cast<int>(threadIdx.x) / 32) {
    // Bytes that a lane turns its 16 by, so that it begins at another group than the lanes with the same banks.
    int const i = lane_ / 4, t = lane_ % 4, turn = 2 * i + (kResiduals == 1 ? t / 2 : 0);
    shift_ = turn % 4 * 8;
#pragma unroll
    for (int j = 0; j < kBases; ++j) {
      groups_[j] = table_ + (t * kBases + (j + turn / kResiduals) % kBases) * 4;
    }
  }

  __device__ __forceinline__ void run() {
    Place now = Place::of(args_, share_.begin);
    if constexpr (!Shape::kTiled) load_entries();
    wait_for_predecessor();
    release_successor();
    int left = share_.count;
    if (left == 0) return;
    load_x(now);
    make_table(table_);
    __syncthreads();
    float sums[2] = {};  // of both units of rows of a tile
    int part = 0;        // of the sums of these rows
    if constexpr (Shape::kTiled) {
      part = static_cast<int>(blockIdx.x) - owner(args_, now.row / (2 * kTableRows) * args_.slices);
    }
    while (true) {
      int const count = min(now.run(args_), left);
      Place next = now;
      left -= count;
      if constexpr (Shape::kTiled) {
        next.advance(args_);
        next.advance(args_);
      } else {
        next = {now.slice + 1, 0};
      }
      if (left > 0) load_x(next);
      if constexpr (Shape::kTiled) {
        sums[0] += look_up<0>();
        sums[1] += look_up<1>();
        if (left == 0 || next.row != now.row) {
          leave_sum(args_, part, now.row, sums[0]);
          leave_sum(args_, part, now.row + kTableRows, sums[1]);
          sums[0] = sums[1] = 0.0f;
          part = 0;
        }
      } else {
#pragma unroll 1
        for (int u = 0; u < count; ++u) leave_sum(args_, now.slice, now.row + u * kTableRows, look_up<0>());
      }
      if (left == 0) return;
      if constexpr (Shape::kTiled) {
        make_table(table_ + (side_ ^ Shape::kTableBytes));
        side_ ^= Shape::kTableBytes;
      } else {
        __syncthreads();  // everyone has left the table
        make_table(table_);
      }
      __syncthreads();
      now = next;
    }
  }

 private:
  /// A operands: entry lane / 4 of every tile of this warp, its elements 2 t and 2 t + 1.
  __device__ __forceinline__ void load_entries() {
    auto const* const books = reinterpret_cast<uint32_t const*>(args_.codebooks);
#pragma unroll
    for (int i = 0; i < kEntryTiles; ++i) {
      int const entry = (warp_ * kEntryTiles + i) * 8 + lane_ / 4;
      entries_[i] = from_half_pair<T>(__ldg(books + entry * (Shape::kVector / 2) + lane_ % 4));
    }
  }

  /// B operands of a place: column g of tile j is group 16 (j / 2) + 4 (g / 2) + 2 (j % 2) + g % 2 of x, so that two
  /// tiles leave products of four groups that follow each other in a lane; elements 2 t and 2 t + 1.
  __device__ __forceinline__ void load_x(Place const& at) {
    int const g = lane_ / 4, group = g / 2 * 4 + g % 2;
    int const first = at.slice * Shape::kColumns + group * Shape::kVector + lane_ % 4 * 2;
    int const limit = lane_ % 4 * 2 < Shape::kVector ? args_.k - first : 0;
    T const* const x = args_.x + first;
#pragma unroll
    for (int j = 0; j < kGroupTiles; ++j) {
      int const column = (j / 2 * 16 + j % 2 * 2) * Shape::kVector;
      x_[j] = column < limit ? *reinterpret_cast<uint32_t const*>(x + column) : 0;
    }
  }

  /// Products of x with this warp's entries.
  __device__ __forceinline__ void make_table(uint32_t table) {
    if constexpr (Shape::kTiled) {
      queue_.peek_entries(entries_);
#pragma unroll
      for (uint32_t& entry : entries_) entry = lane_ % 4 * 2 < Shape::kVector ? from_half_pair<T>(entry) : 0;
    }
    int const g = lane_ / 4, t = lane_ % 4;
    bool const swapped = g % 2 != 0;  // chunks are stored in the other order, so that lanes meet at no bank
    uint32_t const first = table + g * 256 + t * 16;
#pragma unroll
    for (int i = 0; i < kEntryTiles; i += 2) {
      float c[kGroupTiles][4] = {};
#pragma unroll
      for (int j = 0; j < kGroupTiles; ++j) mma_eight<T>(c[j], entries_[i], entries_[i + 1], x_[j]);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        int const entry = (warp_ * kEntryTiles + i + half) * 8;
        uint32_t const place = first + entry % 256 * 256 + entry / 256 * 128;
#pragma unroll
        for (int j = 0; j < kGroupTiles; j += 4) {  // two chunks of 16 groups, of which this lane has four
          float a[4], b[4];
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            float const low = c[j + e / 2][2 * half + e % 2], high = c[j + 2 + e / 2][2 * half + e % 2];
            a[e] = swapped ? high : low, b[e] = swapped ? low : high;
          }
          store_four(place + j * 32 + (swapped ? 64 : 0), a);
          store_four(place + j * 32 + (swapped ? 0 : 64), b);
        }
      }
    }
  }

  __device__ __forceinline__ static void store_four(uint32_t place, float const (&v)[4]) {
    store_shared(place, __float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3]));
  }

  /// This lane's part of what the codes of the next unit name.
  template <int kHalf>
  __device__ __forceinline__ float look_up() {
    uint32_t word[4];
    if constexpr (Shape::kTiled) {
      queue_.template take<kHalf>(word);
    } else {
      queue_.take(word);
    }
    float sums[2] = {};
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      uint32_t const turned = __funnelshift_r(word[w], word[(w + 1) % 4], shift_);
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        uint32_t const group = groups_[(4 * w + b) / kResiduals];
        sums[b % 2] += load_float(permute_bytes(turned, group, 0x7604 + (b << 4)) + b % kResiduals * 128 + side_);
      }
    }
    return sums[0] + sums[1];
  }

  TableArgs<T> const& args_;
  TableShare const share_;
  typename Shape::Queue queue_;
  uint32_t table_;
  uint32_t side_ = 0;  // of the table that is looked up in
  int const lane_, warp_;
  uint32_t shift_;
  uint32_t groups_[kBases];  // of the lane, in its order
  uint32_t x_[kGroupTiles];
  uint32_t entries_[kEntryTiles];
};

template <class Shape>
__global__ void __launch_bounds__(kTableThreads, 1) linear_table(TableArgs<typename Shape::T> const args) {
  extern __shared__ __align__(128) char shared[];
  TableProduct<Shape>(args, shared_address(shared)).run();
}

}  // namespace graphopt::vq
