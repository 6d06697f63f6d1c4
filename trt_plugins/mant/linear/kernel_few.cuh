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
// Codes become 16-bit numbers, and int8 of X too, so that all linears share the kernel: mma.sync of int8 is no
// faster on Hopper, and a float32 sum of 64 products of int8 with the tables' integers, of up to 10 bits, is exact.
// Byte permutations decode, and keep the units of shifts and masks busy for as long as memory takes. Where x is int8 it
// must be widened by the same units: there arithmetic decodes (step_codes.cuh), or shared memory half of the rows, by a
// table of pairs (code_pairs.cuh).
//
// Weights do not wait for the kernel before: they are constants. All stages but one are on their way when it ends.
#pragma once

#include <cstddef>

#include "common/code_pairs.cuh"
#include "common/ptx.cuh"
#include "common/vec.cuh"
#include "mant/linear/codes.cuh"
#include "mant/linear/few_copies.cuh"
#include "mant/linear/step_codes.cuh"

namespace graphopt::mant {

/// c += a b for 16 columns.
__device__ __forceinline__ void multiply(float (&c)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1, __half) {
  mma_f16(c, a, b0, b1);
}
__device__ __forceinline__ void multiply(float (&c)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1,
                                         __nv_bfloat16) {
  mma_bf16(c, a, b0, b1);
}

/// One warp's part of Y. T: what the products take.
///   kSymmetric: negative codes mirror the positive ones in every type.
///   kByGroup: x has a scale for each token and group.
template <class T, FewCodes kCodes, class Shape, bool kSymmetric, bool kByGroup>
class FewWarp {
  using Layout = FewLayout<kCodes, Shape>;
  using Decoder = FloatDecoder<kSymmetric, Layout::kPairs>;

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

  /// `copies`: of this warp, which has started those of all stages but one.
  __device__ __forceinline__ void run(FewCopies<kCodes, Shape>& copies) {
    if (args_.group_shift == 5) {
      walk<true>(copies);
    } else {
      walk<false>(copies);
    }
  }

  /// Leave the sums at `part`, see FewLayout::kPartPitch.
  __device__ __forceinline__ void leave(float* part) const {
#pragma unroll
    for (int i = 0; i < Shape::kRowTiles; ++i) {
#pragma unroll
      for (int j = 0; j < Shape::kTokenTiles; ++j) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          part[(j * 8 + t_ * 2 + r % 2) * Layout::kPartPitch + i * 16 + r / 2 * 8 + g_] = total_[i][j][r];
        }
      }
    }
  }

 private:
  /// What a lane takes of X for 64 columns: eight columns, and eight 16 further on, of a token of each tile, in the order of
  /// pairs of codes: neighbours; of int8 with kSteps those of bytes 0 and 2 and of 1 and 3, with a table of pairs first bytes
  /// 0 and 1 of both words of codes, then bytes 2 and 3.
  using Columns = uint32_t[Shape::kTokenTiles][2][4];

  /// kNarrow: groups are of 32 columns.
  template <bool kNarrow>
  __device__ __forceinline__ void walk(FewCopies<kCodes, Shape>& copies) {
    int place = 0, free = Shape::kStages - 1;
    int const stride = static_cast<int>(blockDim.x) / 32 * kFewColumns;
    constexpr int kHalvesAtOnce = Shape::kRowTiles > 2 ? 1 : 2;  // two of four tiles want more registers than there are
#pragma unroll 1
    for (int column = warp_ * kFewColumns; column < args_.k; column += stride) {
      cp_async_wait<Shape::kStages - 2>();
      __syncwarp();  // all lanes' copies of this stage have landed, and all have left the one to be refilled
      copies.next_w(free);
      copies.next_x(free);
#pragma unroll kHalvesAtOnce
      for (int half = 0; half < 2; ++half) {
        if (column + 64 * half >= args_.k) break;
        multiply_half<kNarrow>(ring_ + place * Layout::kStageBytes, half, column + 64 * half);
      }
      free = place;
      place = place + 1 == Shape::kStages ? 0 : place + 1;
    }
    cp_async_wait<0>();
  }

  __device__ __forceinline__ void load_x(Columns& x, uint32_t base, int half) const {
#pragma unroll
    for (int j = 0; j < Shape::kTokenTiles; ++j) {
      if constexpr (Layout::kXBytes == 2) {
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          uint4 const v = load_shared_16(base + (x_at_[j] ^ (32 * part)) + 128 * half);
          x[j][part][0] = v.x, x[j][part][1] = v.y, x[j][part][2] = v.z, x[j][part][3] = v.w;
        }
      } else {
        uint2 const v = load_shared_8(base + Layout::kXOffset + (x_at_[j] ^ (64 * half)));
        uint2 const further = load_shared_8(base + Layout::kXOffset + (x_at_[j] ^ (16 + 64 * half)));
        if constexpr (Layout::kSteps) {
          widen<true>(x[j][0][0], x[j][0][1], v.x);
          widen<true>(x[j][0][2], x[j][0][3], v.y);
          widen<true>(x[j][1][0], x[j][1][1], further.x);
          widen<true>(x[j][1][2], x[j][1][3], further.y);
        } else {
          widen_bytes(x[j], 0, v.x, further.x);
          widen_bytes(x[j], 2, v.y, further.y);
        }
      }
    }
  }

  /// Four columns and the four 16 further on, in the order of codes' bytes, to words `at` and the next of both parts.
  __device__ __forceinline__ static void widen_bytes(uint32_t (&x)[2][4], int at, uint32_t v, uint32_t further) {
    widen(x[0][at], x[0][at + 1], first_byte(v, further));
    widen(x[1][at], x[1][at + 1], second_byte(v, further));
  }

  /// Where the table has the type of row 16 i + 8 r + g for the 32 columns `slot`.
  __device__ __forceinline__ uint32_t entry_of(uint32_t base, int slot, int i, int r) const {
    constexpr uint32_t kEntryBytes = Layout::kSteps ? kStepEntryBytes : 32;
    uint32_t const at = base + Layout::kTypeOffset + slot * Layout::kTypeBytes + i / 2 * 16 + 8 * r + g_;
    return table_ + ((load_shared_byte(at) * (i % 2 == 0 ? kEntryBytes : kEntryBytes / 16)) & (15 * kEntryBytes));
  }

  /// What the numbers of row 16 i + 8 r + g and the 32 columns `slot` still lack.
  __device__ __forceinline__ float factor_of(uint32_t base, int slot, int i, int r) const {
    return __uint_as_float(load_shared_4(entry_of(base, slot, i, r) + offsetof(StepRow, factor)));
  }

  __device__ __forceinline__ float scale_of(uint32_t base, int slot, int i, int r) const {
    return load_shared_half(base + Layout::kScaleOffset + slot * Layout::kScaleBytes + (16 * i + 8 * r + g_) * 2);
  }

  /// Scales of the tokens of this lane's sums for the group of `column`; 1 where one scale is for all groups.
  __device__ __forceinline__ void load_token_scales(float (&scales)[Shape::kTokenTiles][2], int column) const {
    bool const by_group = kByGroup && args_.scales > 1;  // x with one scale may be here, too, if W is not symmetric
    int const group = column >> args_.group_shift;
#pragma unroll
    for (int j = 0; j < 2 * Shape::kTokenTiles; ++j) {
      int64_t const m = m0_ + min(8 * (j / 2) + 2 * t_ + j % 2, last_token_);
      scales[j / 2][j % 2] = by_group ? __ldg(args_.sx + m * args_.scales + group) : 1.0f;
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
      float factors[2] = {1.0f, 1.0f};
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        uint2 const words = load_shared_8(base + (w_at_ ^ (32 * half)) + (16 * i + 8 * r) * 64);
        uint32_t const entry = entry_of(base, 2 * half + (kNarrow ? t_ / 2 : 0), i, r);
        if constexpr (Layout::kSteps) {
          StepRow row;
          StepDecoder::load(row, entry);
          if (!kNarrow) factors[r] = row.factor;
          step(a[0], row, words.x, r);
          step(a[1], row, words.y, r);
          continue;
        }
        if (Layout::kPairs && r == 1) {
          look_up(a[0], entry, words.x, r);
          look_up(a[1], entry, words.y, r);
          continue;
        }
        FloatRow table;
        Decoder::load(table, entry);
        decode(a[0], table, words.x, r);
        decode(a[1], table, words.y, r);
      }
#pragma unroll
      for (int part = 0; part < (kNarrow ? 2 : 1); ++part) {
        int const slot = 2 * half + part;
        float scales[2] = {scale_of(base, slot, i, 0), scale_of(base, slot, i, 1)};
#pragma unroll
        for (int r = 0; Layout::kSteps && r < 2; ++r) scales[r] *= kNarrow ? factor_of(base, slot, i, r) : factors[r];
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

  /// The same as decode, by the table of pairs. `entry`: of the type in the other table.
  __device__ __forceinline__ void look_up(uint32_t (&a)[2][4], uint32_t entry, uint32_t word, int r) const {
    uint32_t const pairs = table_ + Layout::kPairOffset + (entry - table_) * (kPairTableBytes / 32);
    a[0][r] = look_up_pair<0>(pairs, word), a[0][2 + r] = look_up_pair<1>(pairs, word);
    a[1][r] = look_up_pair<2>(pairs, word), a[1][2 + r] = look_up_pair<3>(pairs, word);
  }

  /// Registers of row `r` of two products, for first and for second; by arithmetic.
  __device__ __forceinline__ static void step(uint32_t (&a)[2][4], StepRow const& row, uint32_t word, int r) {
    uint32_t first[2], second[2];
    StepDecoder::fragments(first, second, row, word);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      a[0][2 * c + r] = first[c];
      a[1][2 * c + r] = second[c];
    }
  }

  /// The same by a table.
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
      float const scale = kByGroup ? scales[r / 2] * token_scales[r % 2] : scales[r / 2];
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
template <FewCodes kCodes, class Shape>
__device__ __forceinline__ void finish(LinearArgs const& args, float const* parts) {
  int64_t const n0 = int64_t{blockIdx.x} * Shape::kRows, m0 = int64_t{blockIdx.y} * Shape::kTokens;
  using Layout = FewLayout<kCodes, Shape>;
  constexpr int kItems = Shape::kRows * Shape::kTokens;
  for (int item = static_cast<int>(threadIdx.x); item < kItems; item += static_cast<int>(blockDim.x)) {
    int64_t const m = m0 + item / Shape::kRows, n = n0 + item % Shape::kRows;
    if (m >= args.m || n >= args.n) continue;
    float value = 0.0f;
    for (int w = 0; w < static_cast<int>(blockDim.x) / 32; ++w) {
      value += parts[w * (Layout::kPartBytes / 4) + item / Shape::kRows * Layout::kPartPitch + item % Shape::kRows];
    }
    if (kCodes != FewCodes::kFloat && args.scales == 1) value *= __ldg(args.sx + m);
    store_activation(args.y, m * args.n + n, value + load_activation(args.bias, n, args.dtype), args.dtype);
  }
}

/// Bring what `finish` takes of this thread's first item to where it is at hand.
template <FewCodes kCodes, class Shape>
__device__ __forceinline__ void touch(LinearArgs const& args) {
  int const item = static_cast<int>(threadIdx.x);
  int64_t const m = int64_t{blockIdx.y} * Shape::kTokens + item / Shape::kRows;
  int64_t const n = int64_t{blockIdx.x} * Shape::kRows + item % Shape::kRows;
  auto const* const bias = static_cast<char const*>(args.bias) + n * (args.dtype == DType::kFloat32 ? 4 : 2);
  if (n < args.n) touch_line(bias);
  if (kCodes != FewCodes::kFloat && m < args.m) touch_line(args.sx + m * args.scales);
}

template <class T, FewCodes kCodes, class Shape, bool kSymmetric, bool kByGroup>
__device__ __forceinline__ void run_few(LinearArgs const& args, char* shared, uint32_t ring,
                                        FewCopies<kCodes, Shape>& copies) {
  using Layout = FewLayout<kCodes, Shape>;
  FewWarp<T, kCodes, Shape, kSymmetric, kByGroup> own(args, shared_address(shared), ring);
  own.run(copies);
  __syncthreads();
  auto* const parts = reinterpret_cast<float*>(shared + Layout::kTableBytes);
  own.leave(parts + threadIdx.x / 32 * (Layout::kPartBytes / 4));
  __syncthreads();
  finish<kCodes, Shape>(args, parts);
}

/// Fill the block's tables but that of pairs, up to a barrier; returns whether negative codes mirror positive ones.
template <class T, FewCodes kCodes>
__device__ __forceinline__ bool fill_few_table(char* shared, LinearArgs const& args) {
  auto* const table = reinterpret_cast<uint4*>(shared);
  int const thread = static_cast<int>(threadIdx.x);
  if constexpr (kCodes == FewCodes::kSteps) {
    fill_steps(table, thread);
    __syncthreads();
    return true;
  } else {
    return __syncthreads_and(fill_float_table<T>(table, args, thread)) != 0;
  }
}

template <class T, FewCodes kCodes, class Shape>
__global__ void __launch_bounds__(32 * Shape::kWarps * Shape::kBlocks, 1) linear_few(LinearArgs const args) {
  extern __shared__ __align__(16) char few_shared[];
  using Layout = FewLayout<kCodes, Shape>;
  int const warp = static_cast<int>(threadIdx.x) / 32;
  uint32_t const ring = shared_address(few_shared) + Layout::kTableBytes + warp * Layout::kRingBytes;
  FewCopies<kCodes, Shape> copies(args, ring, int64_t{blockIdx.x} * Shape::kRows, int64_t{blockIdx.y} * Shape::kTokens,
                                   warp, static_cast<int>(threadIdx.x) % 32);
#pragma unroll
  for (int s = 0; s < Shape::kStages - 1; ++s) copies.next_w(s);
  bool const symmetric = fill_few_table<T, kCodes>(few_shared, args);
  if constexpr (Layout::kPairs) {
    fill_code_pairs(reinterpret_cast<uint4*>(few_shared + Layout::kPairOffset), kTypes, [&](int type, int code) {
      return entry_bits(reinterpret_cast<uint4 const*>(few_shared), type, code);
    });
  }
  wait_for_predecessor();
  release_successor();
#pragma unroll
  for (int s = 0; s < Shape::kStages - 1; ++s) copies.next_x(s);
  touch<kCodes, Shape>(args);
  if constexpr (Layout::kPairs) __syncthreads();
  constexpr bool kInteger = kCodes != FewCodes::kFloat;
  if (symmetric && !(kInteger && args.scales > 1)) {
    run_few<T, kCodes, Shape, true, false>(args, few_shared, ring, copies);
  } else {
    run_few<T, kCodes, Shape, kCodes == FewCodes::kSteps, kInteger>(args, few_shared, ring, copies);
  }
}

}  // namespace graphopt::mant
