// Attention of one query row over a cache of 8-bit codes, without decoding it; grouped.cuh takes several.
//
// Keys: before a segment, every centroid is multiplied by the part of the query that it meets; a key's score is then a sum
// of table entries, one per code. Values: a code selects the centroid that its weight is multiplied by. Per code that is
// one look-up in shared memory and little else, if look-ups do not collide. They cannot, because
//   - a table's row holds all groups of channels of one code, 256 bytes: the bank is given by the group;
//   - for keys a lane has a token and visits the groups in an order of its own: 32 lanes, 32 groups (see Turn);
//   - for values a lane has its groups and visits the tokens.
// A row of 256 bytes also makes an address out of a code by one byte permutation: byte 1 the code, byte 0 the column.
//
// Shared-memory cycles for 32 tokens of 64 + 64 codes: 64 look-ups and 32 to bring codes in for keys, 64 and 48 for values:
// 20 bytes of cache a cycle, where an H100's memory delivers 13. Instructions: 3.4 a code for keys, 6.6 for values.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "attention/args.cuh"
#include "attention/merge.cuh"
#include "attention/mma.cuh"
#include "attention/policy.h"
#include "attention/vq/args.cuh"
#include "attention/vq/policy.h"
#include "attention/vq/walk.cuh"
#include "attention/work.cuh"
#include "common/ptx.cuh"
#include "common/reduce.cuh"

namespace graphopt::attention {

/// The order in which a lane looks up a row's groups: at step s the word (s + word) % 8 of each 8, whose bytes begin at
/// `byte`. Lanes differ in (word, byte), so that 32 lanes look up 32 different groups; and the words that they read lie in
/// different banks (rows of 64 bytes exchange their halves from the 16th on, see displaced).
template <int kGroups>
struct Turn {
  int word, byte;
  __device__ __forceinline__ explicit Turn(int lane) {
    if constexpr (kGroups == 64) {
      word = lane >> 1 & 7;
      byte = (lane & 1) | (lane >> 4 << 1);
    } else {
      word = lane >> 2;
      byte = lane & 3;
    }
  }
};

template <class Traits>
class VqDecodeKernel {
  using T = typename Traits::T;
  using Shape = typename Traits::Shape;
  using List = TileList<Shape::kTileTokens>;
  static constexpr int kGroups = Shape::kGroups;
  static constexpr int kPlanes = Shape::kPlanes;
  static constexpr int kPerLane = Shape::kPerLane;
  static_assert(4 * combine_floats(Shape::kThreads) <= Shape::kScoreBytes, "parts meet where warps do");

 public:
  __device__ __forceinline__ VqDecodeKernel(VqArgs<T> const& args, char* shared)
      : vq_(args),
        args_(args.cache),
        stamps_(args_.partial, static_cast<int32_t>(blockIdx.x)),
        list_(args_, args_.kv_heads * args_.seq * args_.group),
        lane_(static_cast<int>(threadIdx.x) % 32),
        warp_(static_cast<int>(threadIdx.x) / 32),
        scores_(shared),
        values_(shared + Shape::kScoreBytes),
        codes_(values_ + Shape::kValueBytes + warp_ * Shape::kWarpBytes),
        weights_(reinterpret_cast<float*>(codes_ + 2 * Shape::kCodeBytes)),
        flag_(reinterpret_cast<int32_t*>(values_ + Shape::kValueBytes + Shape::kWarps * Shape::kWarpBytes)) {
    Turn<kGroups> const turn(lane_);
    turn_ = turn.word;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      uint32_t const byte = static_cast<uint32_t>(turn.byte + j) & 3u;
      uint32_t const sign = 12u + byte;  // of a column below 128: zero
      select_[j] = (4u + byte) | byte << 4 | sign << 8 | sign << 12;
    }
  }

  __device__ __forceinline__ void run() {
    release_successor();  // it waits for the end of this kernel, and need not be launched only then
    walk_codes(list_, *this);
  }
  __device__ __forceinline__ Stamps& stamps() { return stamps_; }

  __device__ __forceinline__ void begin_segment(Cursor const& at) {
    rows_.b = at.b;
    rows_.h = at.outer % args_.kv_heads;
    rows_.first = at.outer / args_.kv_heads;
    rows_.count = 1;
    past_ = at.past;
    length_ = at.length;
    max_ = -INFINITY;
    sum_ = 0.0f;
#pragma unroll
    for (int p = 0; p < kPlanes; ++p) o_[p][0] = o_[p][1] = 0.0f;
  }

  __device__ __forceinline__ int32_t head() const { return rows_.h; }

  /// Start copying the warp's codes of a tile; of none, an empty group.
  __device__ __forceinline__ void fetch_keys(int32_t tile) const { fetch(args_.k, codes_, tile); }
  __device__ __forceinline__ void fetch_values(int32_t tile) const {
    fetch(args_.v, codes_ + Shape::kCodeBytes, tile);
  }

  /// Products of every centroid with its part of the queries, times scale log2(e): a warp takes some codes, a lane groups.
  __device__ __forceinline__ void fill_scores() const {
    constexpr int kVector = Shape::kVector, kCodes = 256 / Shape::kWarps;
    T const* book = vq_.codebook_k + int64_t{rows_.h} * args_.head_size * kEntries;
#pragma unroll
    for (int part = 0; part < kGroups / 32; ++part) {
      int const group = part * 32 + lane_;
      T const* row = args_.q + row_offset(args_, rows_.b, rows_.h, rows_.first);
      float q[kVector];
#pragma unroll
      for (int e = 0; e < kVector; ++e) q[e] = to_float(row[group * kVector + e]) * args_.scale_log2;
      constexpr int kPerLoad = Vec<T>::kSize / kVector;
#pragma unroll 4
      for (int c = 0; c < kCodes; c += kPerLoad) {
        int const code = warp_ * kCodes + c;
        Vec<T> const v = load_cached(book + (int64_t{group} * kEntries + code) * kVector);
#pragma unroll
        for (int i = 0; i < kPerLoad; ++i) {
          float dot = 0.0f;
#pragma unroll
          for (int e = 0; e < kVector; ++e) dot += q[e] * v.get(i * kVector + e);
          *reinterpret_cast<float*>(scores_ + (code + i) * 256 + part * 128 + lane_ * 4) = dot;
        }
      }
    }
  }

  /// Centroids of the values, two channels to a word: word `lane` of plane p holds channels 2 p.. of the lane's.
  __device__ __forceinline__ void fill_values() const {
    constexpr int kVector = Shape::kVector, kCodes = 256 / Shape::kWarps, kWords = kVector / 2;
    T const* book = vq_.codebook_v + int64_t{rows_.h} * args_.head_size * kEntries;
    constexpr int kOwn = kGroups / 32;  // groups of a lane
#pragma unroll
    for (int own = 0; own < kOwn; ++own) {
      constexpr int kPerLoad = Vec<T>::kSize / kVector;
#pragma unroll 4
      for (int c = 0; c < kCodes; c += kPerLoad) {
        int const code = warp_ * kCodes + c;
        Vec<T> const v = load_cached(book + (int64_t{lane_ * kOwn + own} * kEntries + code) * kVector);
#pragma unroll
        for (int i = 0; i < kPerLoad; ++i) {
#pragma unroll
          for (int w = 0; w < kWords; ++w) {
            *reinterpret_cast<uint32_t*>(values_ + (code + i) * 256 + (own * kWords + w) * 128 + lane_ * 4) =
                v.word[i * kWords + w];
          }
        }
      }
    }
  }

  /// Add the warp's tokens of one tile to (o, max, sum), and start bringing those of the next one.
  __device__ __forceinline__ void attend(int32_t tile, int32_t next) {
    cp_async_wait<1>();
    __syncwarp();
    float x[kPerLane];
    score(x, tile);
    __syncwarp();
    fetch_keys(next);
    weigh(x);
    cp_async_wait<1>();
    __syncwarp();
    mix(x);
    fetch_values(next);
  }

  /// Add up the warps in the memory of the scores' table and write y, or this block's part of it.
  __device__ __forceinline__ void end_segment(Cursor const& at, Parts const& parts) {
    constexpr int kColumns = kPlanes * 64;
    float* outputs = reinterpret_cast<float*>(scores_);   // [kWarps, D]
    float* sums = outputs + Shape::kWarps * kColumns;     // [kWarps, 2]
    __syncthreads();  // nobody reads the table any more
    float const sum = warp_reduce<Add>(sum_);
    if (lane_ == 0) {
      sums[warp_ * 2] = max_;
      sums[warp_ * 2 + 1] = sum;
    }
#pragma unroll
    for (int p = 0; p < kPlanes; ++p) {
      float2* target = reinterpret_cast<float2*>(outputs + warp_ * kColumns + lane_ * kPlanes * 2 + p * 2);
      *target = make_float2(o_[p][0], o_[p][1]);
    }
    __syncthreads();
    PartialMemory const memory{args_.partial, 1, args_.head_size};
    write_block<Shape::kWarps, 1>(args_, memory, parts, rows_, 0, 1, sums,
                                  [&](int w, int, int column) { return outputs[w * kColumns + column]; });
    meet_blocks<Shape::kThreads>(args_, memory, at.outer * args_.batch + at.b, parts, rows_, flag_, outputs, stamps_);
  }

 private:
  __device__ __forceinline__ int32_t first_token(int32_t tile) const {
    return tile * Shape::kTileTokens + warp_ * Shape::kTokens;
  }

  /// What the bytes of row `row` are displaced by: every other 16 rows of 64 bytes exchange their halves.
  __device__ __forceinline__ static int displaced(int row) { return kGroups == 64 ? (row & 16) * 2 : 0; }

  __device__ __forceinline__ void fetch(void const* cache, char* target, int32_t tile) const {
    fetch_codes<kGroups, Shape::kTokens>(args_, rows_, cache, target, tile >= 0, first_token(tile), length_, displaced);
  }

  __device__ __forceinline__ static uint32_t word_at(char const* table, uint32_t offset) {
    return *reinterpret_cast<uint32_t const*>(table + offset);
  }

  /// Scores of the lane's tokens; -infinity where the query does not see them.
  __device__ __forceinline__ void score(float (&x)[kPerLane], int32_t tile) const {
#pragma unroll
    for (int u = 0; u < kPerLane; ++u) x[u] = 0.0f;
    char const* row = codes_ + lane_ * kGroups;
#pragma unroll
    for (int part = 0; part < kGroups / 32; ++part) {
      char const* words = row + ((part * 32) ^ displaced(lane_));
#pragma unroll
      for (int s = 0; s < 8; ++s) {
        uint32_t const word = static_cast<uint32_t>(s + turn_) & 7u;
        uint32_t const columns = word * 0x10101010u + 0x0c080400u;  // of its four bytes, times 4
#pragma unroll
        for (int u = 0; u < kPerLane; ++u) {
          uint32_t const codes = word_at(words + u * 32 * kGroups, word * 4);
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            uint32_t const offset = permute_bytes(codes, columns, select_[j]);
            x[u] += __uint_as_float(word_at(scores_ + part * 128, offset));
          }
        }
      }
    }
    int32_t const token = first_token(tile) + lane_;
    int32_t const visible = visible_rows(past_, rows_.first / args_.group, args_.capacity);
#pragma unroll
    for (int u = 0; u < kPerLane; ++u) {
      if (token + u * 32 >= visible) x[u] = -INFINITY;
    }
  }

  /// Scores to weights; rescales outputs and sums where the maximum grows.
  __device__ __forceinline__ void weigh(float (&x)[kPerLane]) {
    float m = x[0];
#pragma unroll
    for (int u = 1; u < kPerLane; ++u) m = fmaxf(m, x[u]);
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, offset));
    m = fmaxf(m, max_);
    float const origin = usable_max(m);
    if (m > max_) {
      float const scale = exp2_approx(max_ - origin);
      sum_ *= scale;
#pragma unroll
      for (int p = 0; p < kPlanes; ++p) o_[p][0] *= scale, o_[p][1] *= scale;
    }
    max_ = m;
#pragma unroll
    for (int u = 0; u < kPerLane; ++u) {
      x[u] = exp2_approx(x[u] - origin);
      sum_ += x[u];
    }
  }

  /// Add weight times value of the tile's tokens, sixteen at a time.
  __device__ __forceinline__ void mix(float const (&x)[kPerLane]) {
    char const* codes = codes_ + Shape::kCodeBytes;
#pragma unroll
    for (int u = 0; u < kPerLane; ++u) {
#pragma unroll 1
      for (int upper = 0; upper < 2; ++upper) {
        if (lane_ / 16 == upper) weights_[lane_ % 16] = x[u];
        __syncwarp();
        int const row = u * 32 + upper * 16;
        mix_rows(codes + row * kGroups, row);
        __syncwarp();
      }
    }
  }

  /// Sixteen rows of codes, from row `first` of the tile on.
  __device__ __forceinline__ void mix_rows(char const* codes, int first) {
    // Byte 0 the column, byte 1 the lane's first or second code, above them the sign of the column: zero.
    uint32_t const column = static_cast<uint32_t>(lane_) * 4u;
    constexpr int kOwn = kGroups / 32;
    char const* own = codes + ((lane_ * kOwn) ^ displaced(first));
#pragma unroll 8
    for (int t = 0; t < 16; ++t) {
      uint32_t word;
      if constexpr (kOwn == 2) {
        word = *reinterpret_cast<uint16_t const*>(own + t * kGroups);
      } else {
        word = *reinterpret_cast<uint8_t const*>(own + t * kGroups);
      }
      uint32_t value[kPlanes];
#pragma unroll
      for (int p = 0; p < kPlanes; ++p) {
        uint32_t const offset = permute_bytes(word, column, kOwn == 2 && p == 1 ? 0xcc14u : 0xcc04u);
        value[p] = word_at(values_ + p * 128, offset);
      }
      float const weight = weights_[t];
#pragma unroll
      for (int p = 0; p < kPlanes; ++p) {
        Vec<T> pair;
        pair.word[0] = value[p];
        o_[p][0] += weight * pair.get(0);
        o_[p][1] += weight * pair.get(1);
      }
    }
  }

  VqArgs<T> const& vq_;
  AttentionArgs<T> const& args_;
  Stamps stamps_;
  List list_;
  int lane_, warp_;
  char* scores_;   // table of products, rows of 256 bytes by code; then memory to merge in
  char* values_;   // table of the values' centroids
  char* codes_;    // this warp's codes: of keys, then of values
  float* weights_;  // this warp's weights of 16 tokens
  int32_t* flag_;  // whether this block finished a segment
  int turn_;
  uint32_t select_[4];  // byte permutations: code and column to an offset in a table
  SegmentRows rows_;
  int32_t past_, length_;
  float o_[kPlanes][2];
  float max_, sum_;
};

template <class Traits>
__global__ void __launch_bounds__(Traits::Shape::kThreads, 1)
    attention_vq_decode(VqArgs<typename Traits::T> const args) {
  extern __shared__ __align__(128) char shared[];
  VqDecodeKernel<Traits>(args, shared).run();
}

}  // namespace graphopt::attention
