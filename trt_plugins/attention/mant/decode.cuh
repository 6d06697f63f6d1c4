// Attention of few query rows over a M-ANT cache: 4-bit codes become float16 in registers, right where an mma takes them.
//
// Both products are computed transposed, so that what is decoded is the mma's first operand, 16 rows of codes at a time,
// and eight query rows are its second:
//   scores  S^T = K Q^T      a row is a token, its codes lie along channels, word by group of 64 channels
//   outputs O^T = V^T P^T    a row is a channel, its codes lie along tokens, one word
// Rows of keys are taken in the order in which the transposed scores are the weights that step s of the values needs.
#pragma once

#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "attention/mant/args.cuh"
#include "attention/mant/policy.h"
#include "attention/mant/products.cuh"
#include "attention/mant/queries.cuh"
#include "attention/merge.cuh"
#include "attention/mma.cuh"
#include "attention/softmax.cuh"
#include "attention/work.cuh"
#include "common/ptx.cuh"

namespace graphopt::attention {

template <class T_, int kD_, int kStages_>
struct MantDecodeTraits {
  using T = T_;
  using Shape = MantDecodeShape<kD_, kStages_>;
  static constexpr int kD = kD_;
};

template <class Traits>
class MantDecodeKernel {
  using T = typename Traits::T;
  using Shape = typename Traits::Shape;
  using Pages = MantPages<Shape>;
  using List = TileList<Shape::kTileTokens>;
  static constexpr int kD = Traits::kD;
  static constexpr int kGroups = Shape::kGroups;
  static constexpr int kPerLane = Shape::kPerLane;
  static constexpr int kTiles = kPerLane / 2;  // mma rows of 16 channels
  using KeyWords = std::conditional_t<kGroups == 2, uint32_t, uint16_t>;
  static_assert(kGroups <= 2, "a token's words are read at once");
  static constexpr int kAhead = 2 * (Shape::kStages - 1);  // cp.async groups of later pages
  static_assert(4 * kMantRows * kD <= Shape::kStageBytes, "warps meet in stages");
  static_assert(4 * combine_floats(Shape::kThreads) <= Shape::kStageBytes, "parts do too");

 public:
  __device__ __forceinline__ MantDecodeKernel(MantDecodeArgs<T> const& args, char* shared)
      : all_(args.all),
        args_(args.all.cache),
        own_queries_(args.own_queries),
        stamps_(args_.partial, static_cast<int32_t>(blockIdx.x)),
        shared_(shared),
        list_(args_, args_.kv_heads * ((args_.seq * args_.group + kMantRows - 1) / kMantRows)),
        lane_(static_cast<int>(threadIdx.x) % 32),
        warp_(static_cast<int>(threadIdx.x) / 32),
        g_(lane_ / 4),
        t_(lane_ % 4),
        products_(shared_address(shared)),
        ring_(shared + kMantTypeBytes + kMantPairBytes + warp_ * Shape::kWarpBytes),
        sums_(reinterpret_cast<float*>(shared + kMantTypeBytes + kMantPairBytes + Shape::kWarps * Shape::kWarpBytes)),
        flag_(reinterpret_cast<int32_t*>(sums_ + Shape::kWarps * kMantRows * 2)) {}

  __device__ __forceinline__ void run() {
    if (static_cast<int32_t>(blockIdx.x) >= list_.blocks()) return;
    Stretch stretch(list_);
    ahead_ = list_.at(stretch.position());
    ahead_left_ = stretch.left();
    Cursor const first = ahead_;
    stamps_.pass(Phase::kTiles);
    // Tiles without new tokens need not wait for append.
    MantProducts::fetch_tables(shared_);
    int fetched = 0;
    for (; fetched < Shape::kStages - 1 && !is_new(); ++fetched) fetch();
    stamps_.pass(Phase::kValues);
    if (!own_queries_) wait_for_predecessor();  // append has written them
    stamps_.pass(Phase::kPredecessor);
    release_successor();
    for (; fetched < Shape::kStages - 1; ++fetched) fetch();
    cp_async_wait<kAhead>();  // the tables' group
    __syncthreads();
    stretch.walk(list_, first, [&](Cursor const& at, int32_t tiles, Parts const& parts) {
      begin_segment(at);
      stamps_.pass(Phase::kTables);
      for (int32_t i = 0; i < tiles; ++i) {
        attend((at.tile + i) * Shape::kWarps + warp_, at.length);
        if (i == 0) stamps_.pass(Phase::kFirstTile);
      }
      stamps_.pass(Phase::kTilesDone);
      end_segment(at, parts);
    });
    stamps_.pass(Phase::kEnd);
  }

 private:
  /// Row of keys g of a tile: its token is that of step 0, the next one is row g + 8.
  __device__ __forceinline__ int token_of_row() const { return mant_place(g_ / 2) + g_ % 2 * 16; }

  /// Whether the next tile to fetch has new tokens.
  __device__ __forceinline__ bool is_new() const {
    return ahead_left_ > 0 && (ahead_.tile + 1) * Shape::kTileTokens > ahead_.past;
  }

  /// Start copying the warp's page of the next tile: a group of copies for keys, one for values; empty ones past the end.
  __device__ __forceinline__ void fetch() {
    if (is_new()) wait_for_predecessor();  // append writes it
    int32_t const page = ahead_.tile * Shape::kWarps + warp_;
    bool const exists = ahead_left_ > 0 && page * kMantPage < ahead_.length;
    int64_t const head = int64_t{ahead_.b} * args_.kv_heads + ahead_.outer % args_.kv_heads;
    int64_t const place = exists ? head * (args_.capacity / kMantPage) + page : 0;
    uint32_t const stage = shared_address(ring_ + fill_ * Shape::kStageBytes);
    if (exists) {
      copy<Shape::kKeyBytes>(static_cast<char const*>(args_.k) + place * Shape::kKeyBytes,
                             [&](uint32_t i, uint32_t lane) { return stage + Pages::key_chunk(i, lane); });
      copy<Shape::kMetaBytes>(
          reinterpret_cast<char const*>(all_.k_meta) + place * Shape::kMetaBytes,
          [&](uint32_t i, uint32_t lane) { return stage + Shape::kKeyBytes + i * 512 + lane * 16; });
    }
    cp_async_commit();
    if (exists && (page + 1) * kMantPage <= ahead_.length) {
      uint32_t const values = stage + Shape::kValueOffset, words = values + kPerLane * Shape::kValuePitch;
      copy<Shape::kKeyBytes>(static_cast<char const*>(args_.v) + place * Shape::kKeyBytes,
                             [&](uint32_t i, uint32_t lane) { return values + Pages::value_chunk(i, lane); });
      copy<Shape::kMetaBytes>(reinterpret_cast<char const*>(all_.v_meta) + place * Shape::kMetaBytes,
                              [&](uint32_t i, uint32_t lane) { return words + i * 512 + lane * 16; });
    } else if (exists && lane_ == 0) {
      prefetch_bytes(all_.v_window + head * kMantPage * kD, kMantPage * kD);
      prefetch_bytes(all_.v_scale + head * kMantPage, kMantPage * sizeof(__half));
    }
    cp_async_commit();
    fill_ = fill_ + 1 == Shape::kStages ? 0 : fill_ + 1;
    if (ahead_left_ > 0) {
      --ahead_left_;
      list_.advance(ahead_);
    }
  }

  /// Copy kBytes to where `target` says that chunk 32 i + lane of 16 bytes goes.
  template <int kBytes, class Target>
  __device__ __forceinline__ void copy(char const* source, Target const& target) const {
    uint32_t const lane = static_cast<uint32_t>(lane_);
#pragma unroll
    for (int i = 0; i < (kBytes + 511) / 512; ++i) {
      if (kBytes % 512 == 0 || i * 32 + lane_ < kBytes / 16) {
        cp_async_16(target(static_cast<uint32_t>(i), lane), source + (i * 32 + lane_) * 16, true);
      }
    }
  }

  __device__ __forceinline__ void begin_segment(Cursor const& at) {
    rows_.b = at.b;
    rows_.h = at.outer % args_.kv_heads;
    rows_.first = at.outer / args_.kv_heads * kMantRows;
    rows_.count = min(kMantRows, args_.seq * args_.group - rows_.first);
    head_ = int64_t{rows_.b} * args_.kv_heads + rows_.h;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      int const r = min(t_ * 2 + e, rows_.count - 1);
      visible_[e] = visible_rows(at.past, (rows_.first + r) / args_.group, args_.capacity);
      max_[e] = -INFINITY;
      sum_[e] = 0.0f;
      scale_[e] = args_.scale_log2;
    }
    all_visible_ = visible_rows(at.past, rows_.first / args_.group, args_.capacity);
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int r = 0; r < 4; ++r) o_[n][r] = 0.0f;
    }
    bool const exists = g_ < rows_.count;
    T const *cos = nullptr, *sin = nullptr;
    if (args_.cos != nullptr && exists) {
      int32_t const token = (rows_.first + g_) / args_.group + (args_.tables == 1 ? 0 : rows_.b * args_.seq);
      cos = args_.cos + int64_t{token} * kD, sin = args_.sin + int64_t{token} * kD;
    }
    q_.load(exists ? args_.q + row_offset(args_, rows_.b, rows_.h, rows_.first + g_) : nullptr, t_, scale_, cos, sin);
    if (at.tile == 0 && warp_ == 0) attend_sink();
  }

  /// Begin with token 0, exact: its score is the maximum, its weight 1.
  __device__ __forceinline__ void attend_sink() {
    T const* key = all_.sink + head_ * 2 * kD;
    T const* center = all_.center + rows_.h * kD;
    float const dot = q_.dot(key, center, t_);
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      max_[e] = __shfl_sync(0xffffffffu, dot, (t_ * 2 + e) * 4) * scale_[e];
      // NaN is no maximum; it must show in the sum.
      sum_[e] = g_ == 0 ? exp2_approx(max_[e] - max_[e]) : 0.0f;
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      T const* value = key + kD + g_ * kPerLane + 2 * n;
      o_[n][0] = o_[n][1] = to_float(value[0]);
      o_[n][2] = o_[n][3] = to_float(value[1]);
    }
  }

  /// Add one page's tokens to (o, max, sum).
  __device__ __forceinline__ void attend(int32_t page, int32_t length) {
    cp_async_wait<kAhead - 1>();
    __syncwarp();  // the warp's keys have landed, and all its lanes have left the stage to be refilled
    fetch();
    char const* const stage = ring_ + take_ * Shape::kStageBytes;
    take_ = take_ + 1 == Shape::kStages ? 0 : take_ + 1;
    if (page * kMantPage >= length) return;
    float s[4][4];
    score(stage, s);
    weigh(s, page * kMantPage);
    if ((page + 1) * kMantPage > length) return mix_window(s, page * kMantPage, length);
    cp_async_wait<kAhead>();
    __syncwarp();
    mix(stage + Shape::kValueOffset, s);
  }

  /// Products of 64 tokens and eight query rows: tile m has tokens token_of_row() + 2 m and, in its lower half, the next.
  __device__ __forceinline__ void score(char const* stage, float (&s)[4][4]) const {
    int const first = token_of_row();
    KeyWords const* const words = reinterpret_cast<KeyWords const*>(stage + Shape::kKeyBytes) + first;
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      // Tokens of four differ in what key_offset exchanges; the compiler is to see that the others do not.
      char const* const four = stage + t_ * 8 + m / 2 * (4 * kGroups * 32);
      int const token = first + m % 2 * 2;
      MantWords const own[2] = {{words[2 * m]}, {words[2 * m + 1]}};
      float2 const scale[2] = {own[0].scales(), own[1].scales()};
      float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
      products_.template add<0>(four + Pages::key_offset(token, 0), four + Pages::key_offset(token + 1, 0), own,
                                q_.steps(0), sum);
#pragma unroll
      for (int e = 0; e < 4; ++e) s[m][e] = sum[e] * scale[e / 2].x;
      if constexpr (kGroups == 2) {
        float more[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        products_.template add<1>(four + Pages::key_offset(token, 1), four + Pages::key_offset(token + 1, 1), own,
                                  q_.steps(1), more);
#pragma unroll
        for (int e = 0; e < 4; ++e) s[m][e] += more[e] * scale[e / 2].y;
      }
    }
  }

  /// -infinity for tokens that a query row does not see, and for token 0, which has been counted.
  __device__ __forceinline__ void mask(float (&s)[4][4], int32_t first) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      int32_t const token = first + token_of_row() + i;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (token >= visible_[e] || token == 0) s[i / 2][i % 2 * 2 + e] = -INFINITY;
      }
    }
  }

  /// Products to weights; rescales o where a maximum grows.
  __device__ __forceinline__ void weigh(float (&s)[4][4], int32_t first) {
    if (first == 0 || first + kMantPage > all_visible_) mask(s, first);
    float high[2];
    bool grows = false;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float m = s[0][e];
#pragma unroll
      for (int i = 1; i < 8; ++i) m = fmaxf(m, s[i / 2][i % 2 * 2 + e]);
      high[e] = m * scale_[e];  // the scale is positive
      grows |= high[e] > max_[e] + kSlack;
    }
    if (__any_sync(0xffffffffu, grows)) raise_origins(high, max_, sum_, o_);
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float const origin = usable_max(max_[e]);
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float& x = s[i / 2][i % 2 * 2 + e];
        x = exp2_approx(x * scale_[e] - origin);
        sum += x;
      }
      sum_[e] += sum;
    }
  }

  /// Weights of step m, in the layout of an mma's B.
  __device__ __forceinline__ static void transpose(float const (&s)[4], uint32_t (&p)[2]) {
    p[0] = transpose_8x8(round_pair<__half>(s[0], s[1]));
    p[1] = transpose_8x8(round_pair<__half>(s[2], s[3]));
  }

  /// Add weights times the values of a complete page.
  __device__ __forceinline__ void mix(char const* values, float const (&s)[4][4]) {
    uint32_t p[4][2];
#pragma unroll
    for (int m = 0; m < 4; ++m) transpose(s[m], p[m]);
    uint32_t const* const words =
        reinterpret_cast<uint32_t const*>(values + kPerLane * Shape::kValuePitch + g_ * kPerLane * 2);
    char const* const channels = values + g_ * 32 + t_ * 8;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      MantWords const own{words[n]};
      float2 const scale = own.scales();
      float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
      products_.template add<0, true>(channels + 2 * n * Shape::kValuePitch,
                                      channels + (2 * n + 1) * Shape::kValuePitch, &own, p, sum);
#pragma unroll
      for (int e = 0; e < 4; ++e) o_[n][e] += sum[e] * (e < 2 ? scale.x : scale.y);
    }
  }

  /// Add weights times the values of the open page, which wait in the window. Their scales go to the weights, relative to
  /// the largest one.
  __device__ __forceinline__ void mix_window(float (&s)[4][4], int32_t first, int32_t length) {
    __half const* const scales = all_.v_scale + head_ * kMantPage;
    float scale[8], largest = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      int const row = token_of_row() + i;
      // What is behind the last token means nothing, and token 0 is not read from here.
      bool const used = first + row < length && first + row > 0;
      scale[i] = used ? __half2float(scales[row]) : 0.0f;
      largest = fmaxf(largest, scale[i]);
    }
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, offset));
    }
    float const unit = largest > 0.0f ? largest : 1.0f, inverse = 1.0f / unit;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) o_[n][e] *= inverse;
    }
    int8_t const* const window = all_.v_window + head_ * kMantPage * kD + g_ * kPerLane;
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      float weighted[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) weighted[e] = s[m][e] * (scale[m * 2 + e / 2] * inverse);
      uint32_t p[2];
      transpose(weighted, p);
      uint32_t codes[4][kPerLane / 4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        int8_t const* row = window + (mant_place(t_) + 2 * m + i % 2 * 16 + i / 2) * kD;
#pragma unroll
        for (int w = 0; w < kPerLane / 8; ++w) {
          uint2 const eight = __ldcg(reinterpret_cast<uint2 const*>(row) + w);
          codes[i][2 * w] = eight.x ^ 0x80808080u, codes[i][2 * w + 1] = eight.y ^ 0x80808080u;
        }
      }
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        uint32_t a[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          int const byte = 2 * (n % 2) + i % 2;  // channel 2 n + i % 2 of the lane
          uint32_t const select = static_cast<uint32_t>(byte | (byte + 4) << 8);
          a[i] = biased_pair(permute_bytes(codes[i / 2 * 2][n / 2], codes[i / 2 * 2 + 1][n / 2], select));
        }
        mma_f16(o_[n], a, p[0], p[1]);
      }
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) o_[n][e] *= unit;
    }
  }

  /// Add up the warps and write y, or this block's part of it. They meet in the stages that they have just left: the
  /// same in all warps, and not yet refilled.
  __device__ __forceinline__ void end_segment(Cursor const& at, Parts const& parts) {
    wait_for_predecessor();  // append has set the counters to 0, and has ended before this kernel does
    int const stage = (take_ == 0 ? Shape::kStages : take_) - 1;
    char* const merged = ring_ + (stage * Shape::kStageBytes - warp_ * Shape::kWarpBytes);
    auto const output = [&](int warp, int row, int column) {
      // Rows stand in the same banks, so columns are exchanged by row.
      int const place = row * kD + (column ^ (row / 2 % 4 * 2));
      return reinterpret_cast<float*>(merged + warp * Shape::kWarpBytes) + place;
    };
    __syncwarp();
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float sum = sum_[e];
#pragma unroll
      for (int offset = 4; offset < 32; offset *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
      if (g_ == 0) {
        sums_[(warp_ * kMantRows + t_ * 2 + e) * 2] = max_[e];
        sums_[(warp_ * kMantRows + t_ * 2 + e) * 2 + 1] = sum;
      }
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float* const target = output(warp_, t_ * 2 + e, g_ * kPerLane + 2 * n);
        *reinterpret_cast<float2*>(target) = make_float2(o_[n][e], o_[n][2 + e]);
      }
    }
    __syncthreads();
    PartialMemory const memory{args_.partial, min(kMantRows, args_.seq * args_.group), args_.head_size};
    write_block<Shape::kWarps, kMantRows>(args_, memory, parts, rows_, 0, rows_.count, sums_,
                                          [&](int w, int row, int column) { return *output(w, row, column); });
    __syncthreads();
    meet_blocks<Shape::kThreads>(args_, memory, at.outer * args_.batch + at.b, parts, rows_, flag_,
                                 reinterpret_cast<float*>(merged), stamps_);
  }

  MantArgs<T> const& all_;
  AttentionArgs<T> const& args_;
  bool const& own_queries_;
  Stamps stamps_;
  List list_;
  int lane_, warp_, g_, t_;
  char* shared_;
  MantProducts products_;
  char* ring_;      // this warp's stages
  float* sums_;     // [kWarps, 8, 2]: maxima and sums
  int32_t* flag_;   // whether this block finished a segment
  Cursor ahead_;    // the next tile to fetch
  int32_t ahead_left_;
  int fill_ = 0, take_ = 0;  // stages
  SegmentRows rows_;
  int64_t head_;               // b Hkv + h
  MantQueries<T, kGroups> q_;
  float o_[kTiles][4];         // channels g kPerLane + 2 n + {0, 1}, query rows 2 t + {0, 1}
  float max_[2], sum_[2], scale_[2];
  int32_t visible_[2];         // tokens that query rows 2 t + {0, 1} see
  int32_t all_visible_;        // tokens that all query rows see
};

template <class Traits>
__global__ void __launch_bounds__(Traits::Shape::kThreads, kMantResident)
    attention_mant_decode(MantDecodeArgs<typename Traits::T> const args) {
  extern __shared__ __align__(128) char shared[];
  MantDecodeKernel<Traits>(args, shared).run();
}

}  // namespace graphopt::attention
