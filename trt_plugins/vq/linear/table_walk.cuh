// What the kernels for one token share that look products up instead of entries: how blocks walk the codes, how codes
// come from memory, and how sums of slices become y.
//
// A slice is 64 bytes of codes of every row, for which the products of x with all entries are made once, in shared
// memory. A unit is kTableRows rows of a slice: lane (i = lane / 4, t = lane % 4) of a warp has 16 bytes of row i of
// eight.
#pragma once

#include <cstdint>

#include "common/ptx.cuh"
#include "common/vec.cuh"
#include "vq/linear/book.cuh"

namespace graphopt::vq {

/// LinearParams of one token with the element type known.
template <class T>
struct TableArgs {
  T const* __restrict__ x;               // [K]
  int8_t const* __restrict__ codes;      // [N, row_bytes]
  __half const* __restrict__ codebooks;  // null: the lattice
  float const* __restrict__ ratios;      // of the lattice
  float const* __restrict__ scale;       // [N]
  T const* __restrict__ bias;            // [N]
  T* __restrict__ y;                     // [N]
  float* __restrict__ sums;              // [parts, N], the workspace
  int32_t n;
  int32_t k;
  int32_t row_bytes;
  int32_t slices;
  int32_t units;         // in a slice
  int32_t blocks;        // of the kernel that looks up
  int32_t tile_pairs;    // of units down that share codebooks, where these are those of tiles
  int32_t tile_slices;   // slices that do
  int32_t tiles_across;  // tiles along K
};

constexpr int kSliceBytes = 64;  // of a row
constexpr int kTableWarps = 16;
constexpr int kTableRows = 8 * kTableWarps;
constexpr int kTableThreads = 32 * kTableWarps;

/// Tables begin at a multiple of this: a code then is a byte of an address.
constexpr int kTableAlignment = 64 * 1024;

/// Where a block is. Codebooks for the whole weight: units of a slice follow each other, then those of the next slice.
/// Codebooks of tiles: both units of 2 kTableRows rows and a slice, then those of the next slice, then the next rows;
/// so sums stay in registers as long as rows do.
///   kRows: of a unit.
template <bool kTiled, int kRows = kTableRows>
struct TablePlace {
  int slice, row;

  /// The place of unit `index`.
  template <class T>
  __device__ __forceinline__ static TablePlace of(TableArgs<T> const& args, int index) {
    if constexpr (kTiled) {
      int const tile = index / 2;
      return {tile % args.slices, (tile / args.slices * 2 + index % 2) * kRows};
    } else {
      return {index / args.units, index % args.units * kRows};
    }
  }

  /// Units from here on that look up in one table; of a tile, from its first one on.
  template <class T>
  __device__ __forceinline__ int run(TableArgs<T> const& args) const {
    return kTiled ? 2 : args.units - row / kRows;
  }

  template <class T>
  __device__ __forceinline__ void advance(TableArgs<T> const& args) {
    if constexpr (kTiled) {
      if ((row & kRows) == 0) {
        row += kRows;
        return;
      }
      row -= kRows;
      if (++slice < args.slices) return;
      slice = 0;
      row += 2 * kRows;
    } else {
      row += kRows;
      if (row < args.units * kRows) return;
      row = 0;
      ++slice;
    }
  }
};

/// The part of all units that a block takes.
struct TableShare {
  int begin, count;

  template <bool kTiled, class T>
  __device__ __forceinline__ static TableShare of(TableArgs<T> const& args) {
    constexpr int kGrain = kTiled ? 2 : 1;
    int const all = args.slices * (args.units / kGrain), block = static_cast<int>(blockIdx.x);
    int const begin = static_cast<int>(int64_t{all} * block / args.blocks);
    int const end = static_cast<int>(int64_t{all} * (block + 1) / args.blocks);
    return {kGrain * begin, kGrain * (end - begin)};
  }
};

/// The block that has tile `tile` of all, where codebooks are those of tiles.
template <class T>
__device__ __forceinline__ int owner(TableArgs<T> const& args, int tile) {
  int const all = args.slices * (args.units / 2);
  return static_cast<int>((int64_t{tile + 1} * args.blocks - 1) / all);
}

__device__ __forceinline__ uint32_t load_word(uint32_t shared) {
  uint32_t word[1];
  load_shared(word, shared);
  return word[0];
}

/// Copy 4 bytes from global to shared memory.
__device__ __forceinline__ void cp_async_4(uint32_t shared, void const* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared), "l"(global) : "memory");
}

/// base + a * b, by one instruction.
__device__ __forceinline__ int8_t const* offset_by_product(int8_t const* base, int a, int b) {
  uint64_t address;
  asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(address) : "r"(a), "r"(b), "l"(base));
  return reinterpret_cast<int8_t const*>(address);
}

/// Codes of the units of a block on their way: kDepth - 1 units of kStage bytes in shared memory. Registers do not do:
/// loads into a queue of registers share a scoreboard of their warp, so that to wait for the oldest is to wait for all.
///   Place: a TablePlace.
template <class T, class Place, int kStage, int kDepth_>
class UnitRing {
 public:
  static constexpr int kDepth = kDepth_;
  static constexpr int kBytes = kDepth * kStage;

 protected:
  __device__ __forceinline__ UnitRing(TableArgs<T> const& args, TableShare share)
      : args_(args), ahead_(Place::of(args, share.begin)), left_(share.count) {}

  __device__ __forceinline__ static int after(int stage) { return stage + kStage == kBytes ? 0 : stage + kStage; }

  /// Start the next unit by `copy()`, which copies what is at ahead_ to the stage write_; nothing behind the last one.
  template <class Copy>
  __device__ __forceinline__ void start(Copy&& copy) {
    if (left_ > 0) {
      copy();
      ahead_.advance(args_);
      --left_;
    }
    cp_async_commit();
    write_ = after(write_);
  }

  TableArgs<T> const& args_;
  Place ahead_;
  int left_;
  int read_ = 0, write_ = 0;
};

/// Slots belong to one thread each.
template <class T, int kDepth_>
class UnitQueue : public UnitRing<T, TablePlace<false>, 16 * kTableThreads, kDepth_> {
  using Ring = UnitRing<T, TablePlace<false>, 16 * kTableThreads, kDepth_>;
  using Ring::after, Ring::ahead_, Ring::args_, Ring::read_, Ring::write_;

 public:
  using Ring::kDepth;

  /// Start the first units of `share`.
  __device__ __forceinline__ UnitQueue(TableArgs<T> const& args, TableShare share, uint32_t shared)
      : Ring(args, share), shared_(shared) {
    turn_ = thread_ % 32 / 8;
#pragma unroll
    for (int d = 0; d < kDepth - 1; ++d) load();
  }

  /// This lane's codes of the next unit: word w is its word (w + lane / 8) modulo 4.
  __device__ __forceinline__ void take(uint32_t (&word)[4]) {
    load();
    cp_async_wait<kDepth - 1>();
    uint32_t const slot = shared_ + read_ + thread_ * 16;
#pragma unroll
    for (int w = 0; w < 4; ++w) word[w] = load_word(slot + (w + turn_) % 4 * 4);
    read_ = after(read_);
  }

 private:
  __device__ __forceinline__ void load() {
    this->start([this] { copy(); });
  }

  /// Rows outside W are read as its last one.
  __device__ __forceinline__ void copy() const {
    int const lane = thread_ % 32, warp = thread_ / 32, byte = ahead_.slice * kSliceBytes + lane % 4 * 16;
    int8_t const* const row =
        offset_by_product(args_.codes, min(ahead_.row + warp * 8 + lane / 4, args_.n - 1), args_.row_bytes);
    bool const valid = byte < args_.row_bytes;
    cp_async_16(shared_ + write_ + thread_ * 16, row + (valid ? byte : 0), valid);
  }

  uint32_t const shared_;
  int const thread_ = static_cast<int>(threadIdx.x);
  int turn_;
};

__device__ __forceinline__ float load_float(uint32_t shared) {
  float value;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(shared));
  return value;
}

__device__ __forceinline__ void store_word(uint32_t shared, uint32_t word) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(shared), "r"(word) : "memory");
}

__device__ __forceinline__ void store_float(uint32_t shared, float value) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(shared), "f"(value) : "memory");
}

/// The sum of the four lanes of a row.
__device__ __forceinline__ float add_row(float sum) {
  sum += __shfl_xor_sync(0xffffffffu, sum, 1);
  return sum + __shfl_xor_sync(0xffffffffu, sum, 2);
}

/// Leave a row's sum in part `part` of the workspace; one lane of four does it.
template <class T>
__device__ __forceinline__ void leave_sum(TableArgs<T> const& args, int part, int row, float sum) {
  int const lane = static_cast<int>(threadIdx.x) % 32, n = row + static_cast<int>(threadIdx.x) / 32 * 8 + lane / 4;
  sum = add_row(sum);
  if (lane % 4 == 0 && n < args.n) args.sums[int64_t{part} * args.n + n] = sum;
}

constexpr int kAddThreads = 256;
constexpr int kAddLanes = 8;  // of a row

/// The sum of every kAddLanes-th part from `first` on, of row n. kAtOnce: parts on their way.
template <int kAtOnce, class T>
__device__ __forceinline__ float add_parts(TableArgs<T> const& args, int n, int first, int parts) {
  float sum = 0.0f;
  for (; first < parts; first += kAddLanes * kAtOnce) {
    float some[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      int const part = first + i * kAddLanes;
      some[i] = part < parts ? args.sums[int64_t{part} * args.n + n] : 0.0f;
    }
#pragma unroll
    for (float const part : some) sum += part;
  }
  return sum;
}

/// y = T(scale * (sum over parts) + bias). Blocks that start early want room beside those that look up, which leave
/// registers for 256 threads of 32.
template <class T, bool kTiled>
__global__ void __launch_bounds__(kAddThreads, 65536 / (32 * kAddThreads)) linear_add_parts(TableArgs<T> const args) {
  constexpr int kRows = kAddThreads / kAddLanes;
  __shared__ float sums[kAddLanes][kRows];
  int const at = static_cast<int>(threadIdx.x) % kRows, lane = static_cast<int>(threadIdx.x) / kRows;
  int const n = static_cast<int>(blockIdx.x) * kRows + at;
  bool const valid = n < args.n;
  float const scale = valid ? __ldg(args.scale + n) : 0.0f;
  float const bias = valid ? to_float(__ldg(args.bias + n)) : 0.0f;
  int parts = valid ? args.slices : 0;
  if constexpr (kTiled) {
    int const tile = n / (2 * kTableRows) * args.slices;
    if (valid) parts = owner(args, tile + args.slices - 1) - owner(args, tile) + 1;
  }
  wait_for_predecessor();
  release_successor();
  constexpr int kMany = 64;  // with fewer parts, the loads that are left out take longer than one more turn
  float sum = !kTiled && parts > kMany ? add_parts<16>(args, n, lane, parts) : add_parts<4>(args, n, lane, parts);
  sums[lane][at] = sum;
  __syncthreads();
  if (lane != 0 || !valid) return;
#pragma unroll
  for (int other = 1; other < kAddLanes; ++other) sum += sums[other][at];
  args.y[n] = from_float<T>(fmaf(sum, scale, bias));
}

}  // namespace graphopt::vq
