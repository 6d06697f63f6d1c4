// Kernel for few tokens, where reading W is all the work. Yᵀ = W Xᵀ: the 16 rows of an mma are rows of W, its 8 columns
// tokens.
//
// Warps split K and never wait for each other: each has a ring of stages of 128 columns of its own, filled by cp.async
// with codes, scales and types of the block's rows and with the columns of X. A dot product does not care about the
// order of K: of 64 columns, lane (g = lane / 4, t = lane % 4) takes bytes 8 t.. of rows g and g + 8, which are two
// words of codes, and the columns of token g that they belong to. So an mma stays inside a group of 64, whose sum is
// scaled and added in float32. A group of 32 belongs to half of the lanes: there each product is made twice, with the
// other lanes' X as zero. The warps' sums meet in shared memory in a fixed order.
//
// Codes become 16-bit numbers, and int8 of X too, so that both kinds of linear share the kernel: mma.sync of int8 is no
// faster on Hopper, and a float32 sum of 64 products of int8 with the tables' integers, of up to 10 bits, is exact.
//
//   stage: W [rows][64 bytes], X [tokens][128 columns], scales [4][rows], types [4][rows / 2 bytes], the latter two for
//   each
//   32 columns; of groups of 64 and more, every second one is not used.
#pragma once

#include "common/ptx.cuh"
#include "common/vec.cuh"
#include "mant/linear/codes.cuh"
#include "mant/linear/policy.h"

namespace graphopt::mant {

constexpr int kFewColumns = 128;  // of a stage
constexpr int kFewSlots = 4;      // groups of 32 in a stage

/// c += a b for 16 columns.
__device__ __forceinline__ void multiply(float (&c)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1, __half) {
  mma_f16(c, a, b0, b1);
}
__device__ __forceinline__ void multiply(float (&c)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1,
                                         __nv_bfloat16) {
  mma_bf16(c, a, b0, b1);
}

/// X: of x, 16 bits or int8_t.
template <class X, class Shape>
struct FewLayout {
  static constexpr int kXBytes = sizeof(X);
  static constexpr int kXRowBytes = kFewColumns * kXBytes;
  static constexpr int kXOffset = Shape::kRows * kFewColumns / 2;
  static constexpr int kScaleBytes = Shape::kRows * 2;  // of a slot
  static constexpr int kScaleOffset = kXOffset + Shape::kTokens * kXRowBytes;
  static constexpr int kTypeBytes = Shape::kRows / 2;
  static constexpr int kTypeOffset = kScaleOffset + kFewSlots * kScaleBytes;
  static constexpr int kStageBytes = kTypeOffset + kFewSlots * kTypeBytes;
  static constexpr int kRingBytes = kStageBytes * Shape::kStages;  // of a warp
  static constexpr int kTableBytes = kFloatEntries * 16;
  static constexpr int shared_bytes(int warps) { return kTableBytes + warps * kRingBytes; }

  /// Offsets in a stage of a chunk of 16 bytes; chunks change places so that a warp's reads meet all banks alike.
  __device__ __forceinline__ static uint32_t w_place(int row, int chunk) {
    return static_cast<uint32_t>(row * 64 + ((chunk ^ (row & 2)) << 4));
  }
  __device__ __forceinline__ static uint32_t x_place(int token, int chunk) {
    int const turned = kXBytes == 2 ? (token & 1) << 1 : (token & 1) | (token & 2) << 1;
    return static_cast<uint32_t>(kXOffset + token * kXRowBytes + ((chunk ^ turned) << 4));
  }

  static constexpr int kPartBytes = Shape::kTokens * Shape::kRows * 4;
  static_assert(kPartBytes <= kRingBytes, "sums take the place of the stages");
  static_assert(kStageBytes % 16 == 0);
};

/// What a lane copies into the stages of its warp, from pointers that move from stage to stage.
template <class X, class Shape>
class FewCopies {
  using Layout = FewLayout<X, Shape>;
  static constexpr int kXChunks = Layout::kXRowBytes / 16;  // of a token
  static constexpr int kScaleChunks = Layout::kScaleBytes / 16;
  static constexpr int kChunks = kScaleChunks + Layout::kTypeBytes / 16;  // of a slot
  static constexpr int kGroupCopies = (kFewSlots * kChunks + 31) / 32;
  static constexpr int kXTokens = 32 / kXChunks;  // that a warp copies at once

 public:
  __device__ __forceinline__ FewCopies(LinearArgs const& args, uint32_t ring, int64_t n0, int64_t m0, int warp,
                                       int lane)
      : args_(args), ring_(ring), stage_(warp), lane_(lane) {
    int const row = lane / 4, token = lane / kXChunks;
    w_byte_ = warp * kFewColumns / 2 + lane % 4 * 16;
    w_ = args.codes + (n0 + row) * args.row_bytes + w_byte_;
    w_left_ = static_cast<int>(min(args.n - n0, int64_t{Shape::kRows})) - row;
    x_column_ = warp * kFewColumns + lane % kXChunks * (16 / Layout::kXBytes);
    x_ = static_cast<char const*>(args.x) + ((m0 + token) * args.k + x_column_) * Layout::kXBytes;
    tokens_ = static_cast<int>(min(args.m - m0, int64_t{Shape::kTokens}));
#pragma unroll
    for (int i = 0; i < kGroupCopies; ++i) {
      int const chunk = (lane + 32 * i) % kChunks;
      int64_t const n = n0 + chunk * 8, byte = n0 / 2 + (chunk - kScaleChunks) * 16;
      bool const scales = chunk < kScaleChunks;
      of_group_[i] = scales ? reinterpret_cast<char const*>(args.scale + n)
                            : reinterpret_cast<char const*>(args.types + byte);
      group_pitch_[i] = scales ? static_cast<int>(args.n) * 2 : args.type_bytes;
      inside_[i] = scales ? n < args.n : byte < args.type_bytes;
    }
  }

  /// Start copying the warp's next stage into place `place`; past the end only an empty group, to keep the count of
  /// groups.
  __device__ __forceinline__ void next(int place) {
    if (stage_ * kFewColumns < args_.k) {
      uint32_t const base = ring_ + place * Layout::kStageBytes;
      copy_codes(base);
      copy_groups(base);
      copy_x(base);
      int const step = static_cast<int>(blockDim.x) / 32 * kFewColumns;
      stage_ += step / kFewColumns;
      w_ += step / 2;
      w_byte_ += step / 2;
      x_ += step * Layout::kXBytes;
      x_column_ += step;
    }
    cp_async_commit();
  }

 private:
  __device__ __forceinline__ void copy_codes(uint32_t base) const {
    uint32_t const to = base + lane_ / 4 * 64 + ((lane_ % 4 ^ (lane_ / 4 & 2)) << 4);
    bool const inside = w_byte_ < args_.row_bytes;
#pragma unroll
    for (int i = 0; i < Shape::kRows / 8; ++i) {
      cp_async_16(to + i * 8 * 64, w_ + int64_t{8 * i} * args_.row_bytes, inside && w_left_ > 8 * i);
    }
  }

  /// Scales and types of the stage's groups.
  __device__ __forceinline__ void copy_groups(uint32_t base) const {
#pragma unroll
    for (int i = 0; i < kGroupCopies; ++i) {
      int const item = lane_ + 32 * i, slot = item / kChunks, chunk = item % kChunks;
      if (slot >= kFewSlots || (slot % 2 == 1 && args_.group_shift > 5)) continue;
      // Beyond K the last group, whose types certainly mean something.
      int const group = min((stage_ * kFewColumns + 32 * slot) >> args_.group_shift, args_.groups - 1);
      uint32_t const to = chunk < kScaleChunks
                              ? Layout::kScaleOffset + slot * Layout::kScaleBytes + chunk * 16
                              : Layout::kTypeOffset + slot * Layout::kTypeBytes + (chunk - kScaleChunks) * 16;
      cp_async_16(base + to, of_group_[i] + int64_t{group} * group_pitch_[i], inside_[i]);
    }
  }

  __device__ __forceinline__ void copy_x(uint32_t base) const {
    bool const inside = x_column_ < args_.k;
#pragma unroll
    for (int i = 0; i < Shape::kTokens / kXTokens; ++i) {
      int const token = lane_ / kXChunks + i * kXTokens;
      if (tokens_ <= i * kXTokens) break;
      cp_async_16(base + Layout::x_place(token, lane_ % kXChunks),
                  x_ + int64_t{i * kXTokens * Layout::kXBytes} * args_.k, inside && token < tokens_);
    }
  }

  LinearArgs const& args_;
  uint32_t const ring_;
  int stage_;
  int const lane_;
  int w_byte_, w_left_;  // of a row of codes; rows of W from this lane's on
  int x_column_, tokens_;
  int8_t const* w_;
  char const* x_;
  char const* of_group_[kGroupCopies];  // of group 0
  int group_pitch_[kGroupCopies];       // bytes to the next group
  bool inside_[kGroupCopies];
};

/// One warp's part of Y. T: what the products take; X: of x, T or int8_t.
template <class T, class X, class Shape, bool kSymmetric>
class FewWarp {
  using Layout = FewLayout<X, Shape>;
  using Decoder = FloatDecoder<kSymmetric>;
  static constexpr int kRows = Shape::kRows;

 public:
  /// `ring`: this warp's; `table`: the block's; in the shared address space.
  __device__ __forceinline__ FewWarp(LinearArgs const& args, uint32_t table, uint32_t ring)
      : args_(args),
        table_(table),
        ring_(ring),
        m0_(int64_t{blockIdx.y} * Shape::kTokens),
        last_token_(static_cast<int>(min(args.m - m0_, int64_t{Shape::kTokens})) - 1),
        warp_(static_cast<int>(threadIdx.x) / 32),
        g_(static_cast<int>(threadIdx.x) % 32 / 4),
        t_(static_cast<int>(threadIdx.x) % 4),
        w_at_(Layout::w_place(g_, t_ / 2) + t_ % 2 * 8) {
#pragma unroll
    for (int j = 0; j < Shape::kTokenTiles; ++j) {
      int const token = min(8 * j + g_, last_token_);  // more tokens are not there, nor stored
      x_at_[j] = Layout::kXBytes == 2 ? Layout::x_place(token, t_ / 2 * 4 + t_ % 2)
                                      : Layout::x_place(token, t_ / 2 * 2) - Layout::kXOffset + t_ % 2 * 8;
    }
  }

  __device__ __forceinline__ void run() {
    FewCopies<X, Shape> copies(args_, ring_, int64_t{blockIdx.x} * kRows, m0_, warp_,
                                     static_cast<int>(threadIdx.x) % 32);
#pragma unroll
    for (int s = 0; s < Shape::kStages - 1; ++s) copies.next(s);
    int place = 0, free = Shape::kStages - 1;
    int const stride = static_cast<int>(blockDim.x) / 32 * kFewColumns;
#pragma unroll 1
    for (int column = warp_ * kFewColumns; column < args_.k; column += stride) {
      cp_async_wait<Shape::kStages - 2>();
      __syncwarp();  // all lanes' copies of this stage have landed, and all have left the one to be refilled
      copies.next(free);
      multiply_stage(ring_ + place * Layout::kStageBytes, column);
      free = place;
      place = place + 1 == Shape::kStages ? 0 : place + 1;
    }
    cp_async_wait<0>();
  }

  /// Leave the sums at `part`, [tokens][rows].
  __device__ __forceinline__ void leave(float* part) const {
#pragma unroll
    for (int i = 0; i < Shape::kRowTiles; ++i) {
#pragma unroll
      for (int j = 0; j < Shape::kTokenTiles; ++j) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          part[(j * 8 + t_ * 2 + r % 2) * kRows + i * 16 + r / 2 * 8 + g_] = total_[i][j][r];
        }
      }
    }
  }

 private:
  /// What a lane takes of X for 64 columns: eight columns, and eight 16 further on, of a token of each tile.
  using Columns = uint32_t[Shape::kTokenTiles][2][4];

  __device__ __forceinline__ void multiply_stage(uint32_t base, int column) {
    bool const narrow = args_.group_shift == 5;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (column + 64 * half >= args_.k) break;
      if (narrow) {
        multiply_half<true>(base, half, column + 64 * half);
      } else {
        multiply_half<false>(base, half, column + 64 * half);
      }
    }
  }

  __device__ __forceinline__ void load_x(Columns& x, uint32_t base, int half) const {
#pragma unroll
    for (int j = 0; j < Shape::kTokenTiles; ++j) {
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        if constexpr (Layout::kXBytes == 2) {
          uint4 const v = load_shared_16(base + (x_at_[j] ^ (32 * part)) + 128 * half);
          x[j][part][0] = v.x, x[j][part][1] = v.y, x[j][part][2] = v.z, x[j][part][3] = v.w;
        } else {
          uint2 const v = load_shared_8(base + Layout::kXOffset + (x_at_[j] ^ (16 * part + 64 * half)));
          widen(x[j][part][0], x[j][part][1], v.x);
          widen(x[j][part][2], x[j][part][3], v.y);
        }
      }
    }
  }

  /// Where the table has the type of row 16 i + 8 r + g for the 32 columns `slot`.
  __device__ __forceinline__ uint32_t entry_of(uint32_t base, int slot, int i, int r) const {
    constexpr uint32_t kEntryBytes = 32;
    uint32_t const at = base + Layout::kTypeOffset + slot * Layout::kTypeBytes + i / 2 * 16 + 8 * r + g_;
    return table_ + ((load_shared_byte(at) * (i % 2 == 0 ? kEntryBytes : kEntryBytes / 16)) & (15 * kEntryBytes));
  }

  __device__ __forceinline__ float scale_of(uint32_t base, int slot, int i, int r) const {
    return load_shared_half(base + Layout::kScaleOffset + slot * Layout::kScaleBytes + (16 * i + 8 * r + g_) * 2);
  }

  /// Scales of the tokens of this lane's sums for the group of `column`; 1 where one scale is for all groups.
  __device__ __forceinline__ void load_token_scales(float (&scales)[Shape::kTokenTiles][2], int column) const {
    bool const by_group = Layout::kXBytes == 1 && args_.scales > 1;
#pragma unroll
    for (int j = 0; j < 2 * Shape::kTokenTiles; ++j) {
      int64_t const m = m0_ + min(8 * (j / 2) + 2 * t_ + j % 2, last_token_);
      scales[j / 2][j % 2] = by_group ? __ldg(args_.sx + m * args_.scales + (column >> args_.group_shift)) : 1.0f;
    }
  }

  /// Add the products of 64 columns from `column`. kNarrow: they are two groups.
  template <bool kNarrow>
  __device__ __forceinline__ void multiply_half(uint32_t base, int half, int column) {
    Columns x;
    load_x(x, base, half);
    float token_scales[kNarrow ? 2 : 1][Shape::kTokenTiles][2];
#pragma unroll
    for (int part = 0; part < (kNarrow ? 2 : 1); ++part) {
      load_token_scales(token_scales[part], min(column + 32 * part, args_.k - 1));
    }
#pragma unroll
    for (int i = 0; i < Shape::kRowTiles; ++i) {
      uint32_t a[2][2][4];  // [word][first, second][register]
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        uint2 const words = load_shared_8(base + (w_at_ ^ (32 * half)) + (16 * i + 8 * r) * 64);
        FloatRow table;
        Decoder::load(table, entry_of(base, 2 * half + (kNarrow ? t_ / 2 : 0), i, r));
        decode(a[0], table, words.x, r);
        decode(a[1], table, words.y, r);
      }
#pragma unroll
      for (int part = 0; part < (kNarrow ? 2 : 1); ++part) {
        int const slot = 2 * half + part;
        float const scales[2] = {scale_of(base, slot, i, 0), scale_of(base, slot, i, 1)};
        bool const mine = !kNarrow || t_ / 2 == part;
#pragma unroll
        for (int j = 0; j < Shape::kTokenTiles; ++j) {
          float sums[4] = {};
          multiply_group(sums, a, x[j], mine);
          add(total_[i][j], sums, scales, token_scales[part][j]);
        }
      }
    }
  }

  /// Registers of row `r` of two products, for first and for second.
  __device__ __forceinline__ void decode(uint32_t (&a)[2][4], FloatRow const& table, uint32_t word, int r) const {
    uint32_t first[2], second[2];
    Decoder::fragments(first, second, table, word, two_16_);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      a[0][2 * c + r] = first[c];
      a[1][2 * c + r] = second[c];
    }
  }

  __device__ __forceinline__ static void multiply_group(float (&sums)[4], uint32_t const (&a)[2][2][4],
                                                        uint32_t const (&x)[2][4], bool mine) {
    auto const own = [&](uint32_t word) { return mine ? word : 0u; };
#pragma unroll
    for (int w = 0; w < 2; ++w) {
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        multiply(sums, a[w][part], own(x[part][2 * w]), own(x[part][2 * w + 1]), T{});
      }
    }
  }

  __device__ __forceinline__ static void add(float (&total)[4], float const (&sums)[4], float const (&scales)[2],
                                             float const (&token_scales)[2]) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      float const scale = Layout::kXBytes == 1 ? scales[r / 2] * token_scales[r % 2] : scales[r / 2];
      total[r] += scale * sums[r];
    }
  }

  LinearArgs const& args_;
  uint32_t const table_;
  uint32_t const ring_;
  int64_t const m0_;
  int const last_token_;
  int const warp_, g_, t_;
  uint32_t const w_at_;  // of this lane's first words in a stage
  uint32_t const two_16_ = static_cast<uint32_t>(opaque(1 << 16));
  uint32_t x_at_[Shape::kTokenTiles];
  float total_[Shape::kRowTiles][Shape::kTokenTiles][4] = {};
};

/// Sum the warps' parts in order, scale, add the bias, round, store.
template <class X, class Shape>
__device__ __forceinline__ void finish(LinearArgs const& args, float const* parts) {
  int64_t const n0 = int64_t{blockIdx.x} * Shape::kRows, m0 = int64_t{blockIdx.y} * Shape::kTokens;
  constexpr int kItems = Shape::kRows * Shape::kTokens;
  for (int item = static_cast<int>(threadIdx.x); item < kItems; item += static_cast<int>(blockDim.x)) {
    int64_t const m = m0 + item / Shape::kRows, n = n0 + item % Shape::kRows;
    if (m >= args.m || n >= args.n) continue;
    float value = 0.0f;
    for (int w = 0; w < static_cast<int>(blockDim.x) / 32; ++w) value += parts[w * kItems + item];
    if (sizeof(X) == 1 && args.scales == 1) value *= __ldg(args.sx + m);
    store_activation(args.y, m * args.n + n, value + load_activation(args.bias, n, args.dtype), args.dtype);
  }
}

template <class T, class X, class Shape, bool kSymmetric>
__device__ __forceinline__ void run_few(LinearArgs const& args, char* shared) {
  using Layout = FewLayout<X, Shape>;
  int const warp = static_cast<int>(threadIdx.x) / 32;
  uint32_t const table = shared_address(shared);
  FewWarp<T, X, Shape, kSymmetric> own(args, table, table + Layout::kTableBytes + warp * Layout::kRingBytes);
  own.run();
  __syncthreads();
  auto* const parts = reinterpret_cast<float*>(shared + Layout::kTableBytes);
  own.leave(parts + warp * Shape::kRows * Shape::kTokens);
  __syncthreads();
  finish<X, Shape>(args, parts);
}

/// Bring the first bytes of the block's rows of W into L2, before the wait for the kernel before.
template <class Shape>
__device__ __forceinline__ void prefetch_rows(LinearArgs const& args) {
  int64_t const n = int64_t{blockIdx.x} * Shape::kRows + static_cast<int>(threadIdx.x);
  if (threadIdx.x >= Shape::kRows || n >= args.n || args.prefetched == 0) return;
  prefetch_bytes(args.codes + n * args.row_bytes, static_cast<uint32_t>(args.prefetched));
}

template <class T, class X, class Shape>
__global__ void __launch_bounds__(32 * Shape::kWarps, Shape::kBlocks) linear_few(LinearArgs const args) {
  extern __shared__ __align__(16) char few_shared[];
  prefetch_rows<Shape>(args);
  wait_for_predecessor();
  release_successor();
  auto* const table = reinterpret_cast<uint4*>(few_shared);
  if (__syncthreads_and(fill_float_table<T>(table, args, static_cast<int>(threadIdx.x)))) {
    run_few<T, X, Shape, true>(args, few_shared);
  } else {
    run_few<T, X, Shape, false>(args, few_shared);
  }
}

}  // namespace graphopt::mant
