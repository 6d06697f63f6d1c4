// Attention of few query rows over a cache of 16-bit elements: reading the cache is all the work.
//
// Each warp runs on its own: 16 cached tokens at a time travel through its ring of cp.async stages and meet all query
// rows of their key/value head, padded to the 16 rows of an mma. The tensor cores idle for the most part, but a product
// on them costs fewer instructions than on CUDA cores even for one row, and grouped heads cost nothing more. Warps, then
// blocks, are added up at the end of a segment (merge.cuh).
#pragma once

#include <cstdint>
#include <type_traits>

#include "attention/args.cuh"
#include "attention/merge.cuh"
#include "attention/mma.cuh"
#include "attention/policy.h"
#include "attention/work.cuh"
#include "common/ptx.cuh"

namespace graphopt::attention {

/// kD_: D rounded up to a size there is a kernel for. kFewRows_: at most 8 query rows, so that half of each mma is unused.
template <class T_, int kD_, bool kFewRows_, int kStages_>
struct DecodeTraits {
  using T = T_;
  using Shape = DecodeShape<kD_, kStages_>;
  static constexpr int kD = kD_;
  static constexpr bool kFewRows = kFewRows_;
  static constexpr int kRows = kFewRows ? 8 : kDecodeRows;
  static constexpr int kHalves = kFewRows ? 1 : 2;  // groups of 8 rows
};

template <class Traits>
class DecodeKernel {
  using T = typename Traits::T;
  using Shape = typename Traits::Shape;
  using List = TileList<Shape::kTileTokens>;
  using Rows = StagedRows<Traits::kD>;
  static constexpr int kD = Traits::kD;
  static constexpr int kHalves = Traits::kHalves;
  static constexpr int kSteps = kD / 16;  // mma along D
  static_assert(combine_floats(Shape::kThreads) <= Shape::kMergeFloats, "parts meet where warps do");

 public:
  __device__ __forceinline__ DecodeKernel(AttentionArgs<T> const& args, char* shared)
      : args_(args),
        stamps_(args_.partial, static_cast<int32_t>(blockIdx.x)),
        list_(args, args.kv_heads * ((args.seq * args.group + kDecodeRows - 1) / kDecodeRows)),
        lane_(static_cast<int>(threadIdx.x) % 32),
        warp_(static_cast<int>(threadIdx.x) / 32),
        ring_(shared_address(shared) + static_cast<uint32_t>(warp_ * Shape::kWarpBytes)),
        queries_(shared + Shape::kWarps * Shape::kWarpBytes),
        merged_(reinterpret_cast<float*>(queries_ + Shape::kQueryBytes)),
        sums_(merged_ + Shape::kMergeFloats),
        flag_(reinterpret_cast<int32_t*>(sums_ + Shape::kWarps * 8 * 2)) {}

  __device__ __forceinline__ void run() {
    if (static_cast<int32_t>(blockIdx.x) >= list_.blocks()) return;
    Stretch stretch(list_);
    ahead_ = list_.at(stretch.position());
    ahead_left_ = stretch.left();
    Cursor const first = ahead_;
    stamps_.pass(Phase::kTiles);
#pragma unroll
    for (int s = 0; s < Shape::kStages - 1; ++s) {
      if (ahead_left_ > 0 && (ahead_.tile + 1) * Shape::kTileTokens > ahead_.past) wait_for_predecessor();
      fetch();
    }
    wait_for_predecessor();  // append has written the queries, the new rows and the counters
    release_successor();
    stamps_.pass(Phase::kPredecessor);
    stretch.walk(list_, first, [&](Cursor const& at, int32_t tiles, Parts const& parts) {
      begin_segment(at);
      stamps_.pass(Phase::kTables);
      for (int32_t i = 0; i < tiles; ++i) {
        cp_async_wait<Shape::kStages - 2>();
        __syncwarp();  // the warp's copies have landed, and all its lanes have left the stage to be refilled
        fetch();
        attend(at.tile + i);
        if (i == 0) stamps_.pass(Phase::kFirstTile);
      }
      stamps_.pass(Phase::kTilesDone);
      end_segment(at, parts);
    });
    stamps_.pass(Phase::kEnd);
  }

 private:
  /// Start copying the next tile of the stretch; past its end only an empty group, to keep the count of groups.
  __device__ __forceinline__ void fetch() {
    if (ahead_left_ > 0) {
      int32_t const h = ahead_.outer % args_.kv_heads;
      int32_t const token = ahead_.tile * Shape::kTileTokens + warp_ * 16;
      int64_t const first = ((int64_t{ahead_.b} * args_.kv_heads + h) * args_.capacity + token) * args_.head_size;
      uint32_t const stage = ring_ + static_cast<uint32_t>(fill_ * Shape::kStageBytes);
      int32_t const rows = ahead_.length - token;
      fetch_rows(stage, static_cast<T const*>(args_.k) + first, rows);
      fetch_rows(stage + Shape::kStageBytes / 2, static_cast<T const*>(args_.v) + first, rows);
      --ahead_left_;
      list_.advance(ahead_);
    }
    fill_ = fill_ + 1 == Shape::kStages ? 0 : fill_ + 1;
    cp_async_commit();
  }

  /// 16 rows of the cache, of which `rows` exist.
  __device__ __forceinline__ void fetch_rows(uint32_t shared, T const* source, int32_t rows) const {
#pragma unroll(kD > 128 ? 2 : 16)
    for (int i = 0; i < 16 * Rows::kChunks / 32; ++i) {
      int const item = i * 32 + lane_;
      int const row = item / Rows::kChunks, chunk = item % Rows::kChunks;
      bool const valid = row < rows && chunk * 8 < args_.head_size;
      cp_async_16(shared + Rows::offset(row, chunk), source + (valid ? row * args_.head_size + chunk * 8 : 0), valid);
    }
  }

  __device__ __forceinline__ void begin_segment(Cursor const& at) {
    rows_.b = at.b;
    rows_.h = at.outer % args_.kv_heads;
    rows_.first = at.outer / args_.kv_heads * kDecodeRows;
    rows_.count = min(kDecodeRows, args_.seq * args_.group - rows_.first);
    if constexpr (Shape::kSharedQueries) {
      stage_queries();
    } else {
      load_queries();
    }
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      int const r = min(lane_ / 4 + half * 8, rows_.count - 1);
      visible_[half] = visible_rows(at.past, (rows_.first + r) / args_.group, args_.capacity);
      max_[half] = -INFINITY;
      sum_[half] = 0.0f;
    }
    all_visible_ = visible_rows(at.past, rows_.first / args_.group, args_.capacity);
#pragma unroll
    for (int n = 0; n < 2 * kSteps; ++n) {
#pragma unroll
      for (int r = 0; r < 4; ++r) o_[n][r] = 0.0f;
    }
  }

  /// Query rows to registers, in the layout of an mma's A; 0 in rows and columns that do not exist.
  __device__ __forceinline__ void load_queries() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int const r = lane_ / 4 + half * 8;
      bool const exists = half < kHalves && r < rows_.count;
      T const* q = args_.q + (exists ? row_offset(args_, rows_.b, rows_.h, rows_.first + r) : 0) + lane_ % 4 * 2;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
#pragma unroll
        for (int high = 0; high < 2; ++high) {
          int const column = step * 16 + high * 8;
          bool const inside = exists && column < args_.head_size;
          q_[step][high * 2 + half] = inside ? *reinterpret_cast<uint32_t const*>(q + column) : 0u;
        }
      }
    }
  }

  /// The same to shared memory, which every warp reads.
  __device__ __forceinline__ void stage_queries() const {
    for (int item = static_cast<int>(threadIdx.x); item < 16 * Rows::kChunks; item += Shape::kThreads) {
      int const row = item / Rows::kChunks, chunk = item % Rows::kChunks;
      Vec<T> q;
      if (row < rows_.count && chunk * 8 < args_.head_size) {
        q = load_cached(args_.q + row_offset(args_, rows_.b, rows_.h, rows_.first + row) + chunk * 8);
      }
      store(reinterpret_cast<T*>(queries_ + Rows::offset(row, chunk)), q);
    }
    __syncthreads();
  }

  /// Columns 16 step.. of the query rows.
  __device__ __forceinline__ void query(int step, uint32_t (&q)[4]) const {
    if constexpr (Shape::kSharedQueries) {
      ldmatrix_x4(q, shared_address(queries_) + Rows::offset(lane_ & 15, step * 2 + (lane_ >> 4)));
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) q[i] = q_[step][i];
    }
  }

  /// Add the warp's 16 tokens of a segment's tile to (o, max, sum).
  __device__ __forceinline__ void attend(int32_t tile) {
    uint32_t const stage = ring_ + static_cast<uint32_t>(take_ * Shape::kStageBytes);
    take_ = take_ + 1 == Shape::kStages ? 0 : take_ + 1;
    float s[2][4] = {};
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t q[4], k[4];
      query(step, q);
      ldmatrix_x4(k, stage + Rows::offset((lane_ & 7) + (lane_ >> 4) * 8, step * 2 + (lane_ >> 3 & 1)));
      mma_16bit<T>(s[0], q, k[0], k[1]);
      mma_16bit<T>(s[1], q, k[2], k[3]);
    }
    int32_t const token = tile * Shape::kTileTokens + warp_ * 16;
    uint32_t p[4] = {};
    weigh(s, p, token);
    uint32_t const values = stage + Shape::kStageBytes / 2;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t v[4];
      ldmatrix_x4_trans(v, values + Rows::offset(lane_ & 15, step * 2 + (lane_ >> 4)));
      mma_16bit<T>(o_[2 * step], p, v[0], v[1]);
      mma_16bit<T>(o_[2 * step + 1], p, v[2], v[3]);
    }
  }

  /// Scores of 16 tokens from `token` on to weights p, an mma's A; rescales o where the maximum grows.
  __device__ __forceinline__ void weigh(float (&s)[2][4], uint32_t (&p)[4], int32_t token) {
    bool const masked = token + 16 > all_visible_;
    float scale[kHalves];
    bool grows = false;
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      float m = max_[half];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& x = s[n][half * 2 + e];
          x *= args_.scale_log2;
          if (masked && token + n * 8 + lane_ % 4 * 2 + e >= visible_[half]) x = -INFINITY;
          m = fmaxf(m, x);
        }
      }
      m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
      m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
      float const origin = usable_max(m);
      grows |= m > max_[half];
      scale[half] = exp2_approx(max_[half] - origin);
      max_[half] = m;
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        float const first = exp2_approx(s[n][half * 2] - origin), second = exp2_approx(s[n][half * 2 + 1] - origin);
        sum += first + second;
        p[n * 2 + half] = round_pair<T>(first, second);
      }
      sum_[half] = sum_[half] * scale[half] + sum;
    }
    if (!__any_sync(0xffffffffu, grows)) return;
#pragma unroll
    for (int n = 0; n < 2 * kSteps; ++n) {
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        o_[n][half * 2] *= scale[half];
        o_[n][half * 2 + 1] *= scale[half];
      }
    }
  }

  /// Add up the warps 8 rows at a time and write y, or this block's part of it.
  __device__ __forceinline__ void end_segment(Cursor const& at, Parts const& parts) {
    PartialMemory const memory{args_.partial, min(kDecodeRows, args_.seq * args_.group), args_.head_size};
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      float sum = sum_[half];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      if (lane_ % 4 == 0) {
        sums_[(warp_ * 8 + lane_ / 4) * 2] = max_[half];
        sums_[(warp_ * 8 + lane_ / 4) * 2 + 1] = sum;
      }
#pragma unroll
      for (int n = 0; n < 2 * kSteps; ++n) {
        float2* target = reinterpret_cast<float2*>(merged_ + merged_index(warp_, lane_ / 4, n * 8 + lane_ % 4 * 2));
        *target = make_float2(o_[n][half * 2], o_[n][half * 2 + 1]);
      }
      __syncthreads();
      write_block<Shape::kWarps, 8>(args_, memory, parts, rows_, half * 8, min(8, rows_.count - half * 8), sums_,
                                    [&](int w, int row, int column) { return merged_[merged_index(w, row, column)]; });
      __syncthreads();
    }
    meet_blocks<Shape::kThreads>(args_, memory, at.outer * args_.batch + at.b, parts, rows_, flag_, merged_, stamps_);
  }

  /// Column of an output in the merge memory; rows stand in the same banks, so columns are exchanged by row.
  __device__ __forceinline__ static int merged_index(int warp, int row, int column) {
    return (warp * 8 + row) * kD + (column ^ (row % 4 * 8));
  }

  AttentionArgs<T> const& args_;
  Stamps stamps_;
  List list_;
  int lane_, warp_;
  uint32_t ring_;   // this warp's stages, in the shared address space
  char* queries_;   // StagedRows<kD> of 16 query rows, where kSharedQueries
  float* merged_;   // [kWarps, 8, kD]
  float* sums_;     // [kWarps, 8, 2]: maxima and sums
  int32_t* flag_;   // whether this block finished a segment
  Cursor ahead_;    // the next tile to fetch
  int32_t ahead_left_;  // tiles of the stretch that are yet to be fetched
  int fill_ = 0, take_ = 0;  // stages
  SegmentRows rows_;
  uint32_t q_[Shape::kSharedQueries ? 1 : kSteps][4];
  float o_[2 * kSteps][4];
  float max_[kHalves], sum_[kHalves];
  int32_t visible_[kHalves];  // rows that this lane's query rows see
  int32_t all_visible_;       // rows that all query rows see
};

template <class Traits>
__global__ void __launch_bounds__(Traits::Shape::kThreads)
    attention_decode(AttentionArgs<typename Traits::T> const args) {
  extern __shared__ __align__(128) char shared[];
  DecodeKernel<Traits>(args, shared).run();
}

}  // namespace graphopt::attention
