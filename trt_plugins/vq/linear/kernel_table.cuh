// Kernel for one token and codes of 8 bits of eight elements, two codes a vector: products instead of entries are
// looked up.
//
// For each group of eight columns, the products of its eight x with all entries are made once, 2 x 256 float32, by
// mma.sync. A code then costs a look-up of 4 bytes instead of an entry's 16. That pays where a table is used by more
// rows than it has entries' worth of work: a block keeps one for a slice of 256 columns and as many rows as are its
// share.
//
//   table [residual][code][32 groups]: one row of banks, a lane looks up in a group of its own, so no two lanes meet
//   lane (i = lane / 4, t = lane % 4) has the 16 bytes of codes of groups 8 t .. 8 t + 7 of row i of eight rows, and
//   takes them in the order j + i modulo 8: at any time the lanes of a warp are in 32 different groups
//
// Sums of a slice go to the workspace; a second kernel, which waits for the first one, adds the slices in their order.
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
  __half const* __restrict__ codebooks;  // [2, 256, 8]
  float const* __restrict__ scale;       // [N]
  T const* __restrict__ bias;            // [N]
  T* __restrict__ y;                     // [N]
  float* __restrict__ sums;              // [slices, N], the workspace
  int32_t n;
  int32_t k;
  int32_t row_bytes;
  int32_t slices;
  int32_t units;  // of kTableRows rows, in a slice
};

constexpr int kTableColumns = 256;  // of a slice
constexpr int kTableWarps = 16;
constexpr int kTableRows = 8 * kTableWarps;  // that a block takes at a time
constexpr int kTableThreads = 32 * kTableWarps;
constexpr int kTableEntries = 512;  // of both residuals
constexpr int kTableSharedBytes = kTableEntries * 32 * 4;

/// c += a b: 16 x 8 times 8 x 8.
template <class T>
__device__ __forceinline__ void mma_k8(float (&c)[4], uint32_t const (&a)[2], uint32_t b) {
  if constexpr (std::is_same_v<T, __half>) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(b));
  } else {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(b));
  }
}

template <class T>
class TableProduct {
  static constexpr int kDepth = 4;                                // units of codes on their way
  static constexpr int kTiles = kTableEntries / kTableWarps / 8;  // of 8 entries that a warp multiplies

  /// A unit: rows from `row` on of a slice. Units follow each other row by row, then slice by slice.
  struct Unit {
    int slice, row;

    __device__ __forceinline__ void advance(int units) {
      row += kTableRows;
      if (row < units * kTableRows) return;
      row = 0;
      ++slice;
    }
  };

 public:
  __device__ __forceinline__ TableProduct(TableArgs<T> const& args, uint32_t table)
      : args_(args),
        table_(table),
        lane_(static_cast<int>(threadIdx.x) % 32),
        warp_(static_cast<int>(threadIdx.x) / 32) {
    int const all = args.slices * args.units;
    int const begin = static_cast<int>(int64_t{all} * blockIdx.x / gridDim.x);
    count_ = static_cast<int>(int64_t{all} * (blockIdx.x + 1) / gridDim.x) - begin;
    now_ = ahead_ = {begin / args.units, begin % args.units * kTableRows};
    loads_left_ = count_;
#pragma unroll
    for (int j = 0; j < 8; ++j) groups_[j] = table_ + (lane_ % 4 * 8 + (j + lane_ / 4) % 8) * 4;
  }

  __device__ __forceinline__ void run() {
    Vec<int8_t> codes[kDepth];
#pragma unroll
    for (int d = 0; d < kDepth; ++d) load(codes[d]);
    load_entries();
    wait_for_predecessor();
    release_successor();
    int slice = -1;
#pragma unroll 1
    for (int i = 0; i < count_; i += kDepth) {
      // Every unit in flight has registers of its own: to move one would be to wait for it.
#pragma unroll
      for (int d = 0; d < kDepth; ++d) {
        if (i + d >= count_) break;
        if (now_.slice != slice) {
          slice = now_.slice;
          __syncthreads();  // everyone has left the table
          make_table(slice);
          __syncthreads();
        }
        Vec<int8_t> const unit = codes[d];
        load(codes[d]);
        float const sum = look_up(unit);
        int const n = row(now_);
        if (lane_ % 4 == 0 && n < args_.n) args_.sums[int64_t{slice} * args_.n + n] = sum;
        now_.advance(args_.units);
      }
    }
  }

 private:
  __device__ __forceinline__ int row(Unit const& unit) const { return unit.row + warp_ * 8 + lane_ / 4; }

  /// This lane's codes of the next unit; zeros behind its row or the last unit.
  __device__ __forceinline__ void load(Vec<int8_t>& codes) {
    int const n = row(ahead_), byte = ahead_.slice * (kTableColumns / 4) + lane_ % 4 * 16;
    codes = {};
    if (loads_left_ > 0 && n < args_.n && byte < args_.row_bytes) {
      // The bytes beside these belong to blocks that run now: memory is read in runs of 256 bytes.
      asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(codes.word[0]), "=r"(codes.word[1]), "=r"(codes.word[2]), "=r"(codes.word[3])
                   : "l"(args_.codes + int64_t{n} * args_.row_bytes + byte));
    }
    --loads_left_;
    ahead_.advance(args_.units);
  }

  /// B operands: entry lane / 4 of every tile of this warp, its elements 2 t and 2 t + 1.
  __device__ __forceinline__ void load_entries() {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      int const entry = (warp_ * kTiles + i) * 8 + lane_ / 4;
      entries_[i] =
          from_half_pair<T>(__ldg(reinterpret_cast<uint32_t const*>(args_.codebooks) + entry * 4 + lane_ % 4));
    }
  }

  /// Products of the slice's 32 groups of x with this warp's entries.
  __device__ __forceinline__ void make_table(int slice) const {
    uint32_t x[2][2];  // A operands: groups 16 i + g and 16 i + 8 + g, elements 2 t and 2 t + 1
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int const column = slice * kTableColumns + (8 * i + lane_ / 4) * 8 + lane_ % 4 * 2;
      x[i / 2][i % 2] = column < args_.k ? *reinterpret_cast<uint32_t const*>(args_.x + column) : 0;
    }
    int const g = lane_ / 4, t = lane_ % 4;
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      float c[2][4] = {};
      mma_k8<T>(c[0], x[0], entries_[i]);
      mma_k8<T>(c[1], x[1], entries_[i]);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        // Lanes start at different groups of eight, so that all store to different banks.
        float v[4] = {c[0][e], c[0][2 + e], c[1][e], c[1][2 + e]};
        rotate<1>(v, (t & 1) != 0);
        rotate<2>(v, (t & 2) != 0);
        uint32_t const place = table_ + ((warp_ * kTiles + i) * 8 + 2 * t + e) * 128 + g * 4;
#pragma unroll
        for (int s = 0; s < 4; ++s) {
          asm volatile("st.shared.f32 [%0], %1;" ::"r"(place + (t + s) % 4 * 32), "f"(v[s]) : "memory");
        }
      }
    }
  }

  template <int kPlaces, class Word>
  __device__ __forceinline__ static void rotate(Word (&v)[4], bool turn) {
    Word turned[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) turned[i] = v[(i + kPlaces) % 4];
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = turn ? turned[i] : v[i];
  }

  /// The sum of what the codes of lane / 4's row name, in all four lanes of the row.
  __device__ __forceinline__ float look_up(Vec<int8_t> const& codes) const {
    int const i = lane_ / 4;
    uint32_t word[4] = {codes.word[0], codes.word[1], codes.word[2], codes.word[3]};
    rotate<1>(word, (i & 2) != 0);
    rotate<2>(word, (i & 4) != 0);
    uint32_t const shift = (i & 1) * 16, first = word[0];
    float sum[2] = {};
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      uint32_t const turned = __funnelshift_r(word[w], w < 3 ? word[w + 1] : first, shift);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          uint32_t const code = __byte_perm(turned, 0, 0x4440 + 2 * h + r);
          float product;
          asm volatile("ld.shared.f32 %0, [%1];"
                       : "=f"(product)
                       : "r"(groups_[2 * w + h] + code * 128 + r * (256 * 128)));
          sum[r] += product;
        }
      }
    }
    float total = sum[0] + sum[1];
    total += __shfl_xor_sync(0xffffffffu, total, 1);
    return total + __shfl_xor_sync(0xffffffffu, total, 2);
  }

  TableArgs<T> const& args_;
  uint32_t const table_;
  int const lane_, warp_;
  int count_, loads_left_;  // units of this block
  Unit now_, ahead_;
  uint32_t groups_[8];  // of the lane, in its order
  uint32_t entries_[kTiles];
};

template <class T>
__global__ void __launch_bounds__(kTableThreads, 1) linear_table(TableArgs<T> const args) {
  extern __shared__ __align__(128) char shared[];
  TableProduct<T>(args, shared_address(shared)).run();
}

constexpr int kAddThreads = 256;
constexpr int kAddLanes = 8;  // of a row

/// y = T(scale * (sum over slices) + bias).
template <class T>
__global__ void __launch_bounds__(kAddThreads) linear_add_slices(TableArgs<T> const args) {
  constexpr int kRows = kAddThreads / kAddLanes;
  __shared__ float parts[kAddLanes][kRows];
  int const at = static_cast<int>(threadIdx.x) % kRows, lane = static_cast<int>(threadIdx.x) / kRows;
  int const n = static_cast<int>(blockIdx.x) * kRows + at;
  bool const valid = n < args.n;
  float const scale = valid ? __ldg(args.scale + n) : 0.0f;
  float const bias = valid ? to_float(__ldg(args.bias + n)) : 0.0f;
  wait_for_predecessor();
  release_successor();
  float sum = 0.0f;
#pragma unroll 4
  for (int slice = lane; slice < args.slices; slice += kAddLanes) {
    if (valid) sum += args.sums[int64_t{slice} * args.n + n];
  }
  parts[lane][at] = sum;
  __syncthreads();
  if (lane != 0 || !valid) return;
#pragma unroll
  for (int other = 1; other < kAddLanes; ++other) sum += parts[other][at];
  args.y[n] = from_float<T>(fmaf(sum, scale, bias));
}

}  // namespace graphopt::vq
