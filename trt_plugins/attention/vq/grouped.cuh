// Attention of two to four query rows over a cache of 8-bit codes, without decoding keys. As decode.cuh: a key's score is a
// sum of table entries, a value's code selects a centroid, and no look-up waits for another. But here one look-up
// serves four rows, and tensor cores add up.
//
// Keys. An entry holds the products of a centroid with four queries, float16. Lanes of a quarter share a token and look up
// different groups; an entry is the lane's part of two rows of an mma's first operand. Multiplied with zeros and ones,
// entries become scores in float32: row g holds queries 0 and 1 of the token, row g + 8 queries 2 and 3.
//
// Values. O^T = V^T P^T: the row of an mma is a channel. Lane (g, t), g = lane / 4 and t = lane % 4, has the groups of
// channels 8 g.. or 4 g.., and tokens by t. At step i it looks up its group number (i + t) % 4: so lanes that
// stand in one row of the mma have different channels, which the second operand keeps apart. Weights are set to zero but
// where number and column agree: columns 0 to 3 are an even number, columns 4 to 7 the odd one after it.
//
// Shared-memory cycles for 16 tokens of 64 + 64 codes: 72 for keys, 40 for values, 16 to bring codes in; an H100's memory
// delivers them in 157. Instructions: about 270, four of which are issued in a cycle.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "attention/args.cuh"
#include "attention/merge.cuh"
#include "attention/mma.cuh"
#include "attention/policy.h"
#include "attention/softmax.cuh"
#include "attention/vq/args.cuh"
#include "attention/vq/policy.h"
#include "attention/vq/walk.cuh"
#include "attention/work.cuh"
#include "common/ptx.cuh"
#include "common/reduce.cuh"

namespace graphopt::attention {

template <class Traits>
class GroupedVqKernel {
  using T = typename Traits::T;
  using Shape = typename Traits::Shape;
  using List = TileList<Shape::kTileTokens>;
  static constexpr int kRows = kGroupedVqRows;
  static constexpr int kGroups = Shape::kGroups;
  static constexpr int kVector = Shape::kVector;
  static constexpr int kTiles = Shape::kTokens / 8;       // eights of a warp's tokens
  static constexpr int kKeyWords = kGroups / 16;          // words of codes that a lane has of a key
  static constexpr int kValueWords = kGroups / 32;        // and of a value
  static constexpr int kPairs = kVector / 2;              // words of a value's centroid
  static constexpr int kParts = kVector == 2 ? kValueWords : kPairs;
  static constexpr int kColumns = kGroups * kVector;      // D
  static constexpr int kChunks = kGroups / 16;            // of 16 bytes of a row of codes
  static constexpr int kRowsAtOnce = 32 / kChunks;        // rows that a warp copies with one instruction
  static_assert(kRowsAtOnce % 4 == 0, "displaced is the same for rows that a lane copies");
  static_assert(4 * (Shape::kWarps * kRows * (kColumns + 2)) <= Shape::kScoreBytes, "warps meet in the scores' table");
  static_assert(4 * combine_floats(Shape::kThreads) <= Shape::kScoreBytes, "parts do too");

 public:
  __device__ __forceinline__ GroupedVqKernel(VqArgs<T> const& args, char* shared)
      : vq_(args),
        args_(args.cache),
        stamps_(args_.partial, static_cast<int32_t>(blockIdx.x)),
        list_(args_, args_.kv_heads * ((args_.seq * args_.group + kRows - 1) / kRows)),
        lane_(static_cast<int>(threadIdx.x) % 32),
        warp_(static_cast<int>(threadIdx.x) / 32),
        g_(lane_ / 4),
        t_(lane_ % 4),
        scores_(shared),
        values_(shared + Shape::kScoreBytes),
        codes_(values_ + Shape::kValueBytes + warp_ * Shape::kWarpBytes),
        flag_(reinterpret_cast<int32_t*>(values_ + Shape::kValueBytes + Shape::kWarps * Shape::kWarpBytes)) {
    row_ = token_of(g_);
    key_turn_ = kGroups == 64 ? t_ + row_ / 2 : t_ / 2 + row_ / 4;
    // Columns of the lane's first groups; the table of 64 groups is two planes of 32.
    uint32_t const t = static_cast<uint32_t>(t_), g = static_cast<uint32_t>(g_);
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j) {
      uint32_t const key = (j + g) & 3u, value = (j + t) & 3u;  // of four codes of a word
      key_select_[j] = kSelect | key << 4;
      key_column_[j] = key * 8u + (kGroups == 64 ? (t / 2u << 8) + t % 2u * 128u : t * 64u);
      value_select_[j] = kSelect | value << 4;
      value_column_[j] = value * 32u + (kVector == 2 ? g * 4u : g % 4u * 8u + g / 4u * 128u);
    }
    pick_ = g_ % 2 == 0 ? 0x3c00u : 0x3c000000u;  // 1 where the first or the second of a pair goes to column g
  }

  __device__ __forceinline__ void run() { walk_codes(list_, *this); }
  __device__ __forceinline__ Stamps& stamps() { return stamps_; }

  __device__ __forceinline__ void begin_segment(Cursor const& at) {
    rows_.b = at.b;
    rows_.h = at.outer % args_.kv_heads;
    rows_.first = at.outer / args_.kv_heads * kRows;
    rows_.count = min(kRows, args_.seq * args_.group - rows_.first);
    length_ = at.length;
    int64_t const place = (int64_t{rows_.b} * args_.kv_heads + rows_.h) * args_.capacity + warp_ * Shape::kTokens;
    own_ = (place + lane_ / kChunks) * kGroups + lane_ % kChunks * 16;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      int const r = min(t_ % 2 * 2 + e, rows_.count - 1);
      visible_[e] = visible_rows(at.past, (rows_.first + r) / args_.group, args_.capacity);
      max_[e] = -INFINITY;
      sum_[e] = 0.0f;
    }
    all_visible_ = visible_rows(at.past, rows_.first / args_.group, args_.capacity);
#pragma unroll
    for (int i = 0; i < 2 * kParts; ++i) {
#pragma unroll
      for (int r = 0; r < 4; ++r) o_[i][r] = 0.0f;
    }
  }

  __device__ __forceinline__ int32_t head() const { return rows_.h; }

  /// Start copying the warp's codes of a tile; of none, an empty group.
  __device__ __forceinline__ void fetch_keys(int32_t tile) const { fetch(args_.k, codes_, tile); }
  __device__ __forceinline__ void fetch_values(int32_t tile) const {
    fetch(args_.v, codes_ + Shape::kCodeBytes, tile);
  }

  /// Products of every centroid with its part of the queries, times scale log2(e): a warp takes some codes, a lane groups.
  __device__ __forceinline__ void fill_scores() const {
    constexpr int kCodes = 256 / Shape::kWarps, kPerLoad = Vec<T>::kSize / kVector;
    T const* book = vq_.codebook_k + int64_t{rows_.h} * args_.head_size * kEntries;
#pragma unroll 1
    for (int plane = 0; plane < kGroups / 32; ++plane) {
      int const group = plane * 32 + lane_;
      float q[kRows][kVector];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        T const* row = args_.q + row_offset(args_, rows_.b, rows_.h, rows_.first + min(r, rows_.count - 1));
#pragma unroll
        for (int e = 0; e < kVector; ++e) q[r][e] = to_float(row[group * kVector + e]) * args_.scale_log2;
      }
#pragma unroll 4
      for (int c = 0; c < kCodes; c += kPerLoad) {
        int const code = warp_ * kCodes + c;
        Vec<T> const v = load_cached(book + (int64_t{group} * kEntries + code) * kVector);
#pragma unroll
        for (int i = 0; i < kPerLoad; ++i) {
          float dot[kRows] = {};
#pragma unroll
          for (int e = 0; e < kVector; ++e) {
#pragma unroll
            for (int r = 0; r < kRows; ++r) dot[r] += q[r][e] * v.get(i * kVector + e);
          }
          *reinterpret_cast<uint2*>(scores_ + plane * 65536 + (code + i) * 256 + lane_ * 8) =
              make_uint2(round_pair<__half>(dot[0], dot[1]), round_pair<__half>(dot[2], dot[3]));
        }
      }
    }
  }

  /// Centroids of the values. The columns of groups that are looked up together lie in different banks.
  __device__ __forceinline__ void fill_values() const {
    constexpr int kCodes = 256 / Shape::kWarps, kPerLoad = Vec<T>::kSize / kVector;
    T const* book = vq_.codebook_v + int64_t{rows_.h} * args_.head_size * kEntries;
#pragma unroll 1
    for (int part = 0; part < kGroups / 32; ++part) {
      int const group = part * 32 + lane_;
      constexpr int kOwn = kGroups / 8;  // groups of a lane
      int const column = kVector == 2 ? group % kOwn * 32 + group / kOwn * 4
                                      : group % 4 * 32 + group / 4 % 4 * 8 + group / 16 * 128;
#pragma unroll 4
      for (int c = 0; c < kCodes; c += kPerLoad) {
        int const code = warp_ * kCodes + c;
        Vec<T> const v = load_cached(book + (int64_t{group} * kEntries + code) * kVector);
#pragma unroll
        for (int i = 0; i < kPerLoad; ++i) {
#pragma unroll
          for (int w = 0; w < kPairs; ++w) {
            *reinterpret_cast<uint32_t*>(values_ + (code + i) * 256 + column + w * 4) = v.word[i * kPairs + w];
          }
        }
      }
    }
  }

  /// Add the warp's tokens of one tile to (o, max, sum), and start bringing those of the next one.
  __device__ __forceinline__ void attend(int32_t tile, int32_t next) {
    cp_async_wait<1>();
    __syncwarp();
    float s[kTiles][2];
    score(s);
    __syncwarp();
    fetch_keys(next);
    uint32_t p[kTiles];
    weigh(s, p, first_token(tile));
    cp_async_wait<1>();
    __syncwarp();
#pragma unroll
    for (int m = 0; m < kTiles; m += 2) mix(m, p[m], p[m + 1]);
    __syncwarp();
    fetch_values(next);
  }

  /// Add up the warps in the memory of the scores' table and write y, or this block's part of it.
  __device__ __forceinline__ void end_segment(Cursor const& at, Parts const& parts) {
    float* outputs = reinterpret_cast<float*>(scores_);         // [kWarps, kRows, D]
    float* sums = outputs + Shape::kWarps * kRows * kColumns;   // [kWarps, kRows, 2]
    __syncthreads();  // nobody reads the table any more
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float sum = sum_[e];
#pragma unroll
      for (int offset = 4; offset < 32; offset *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
      if (lane_ < 2) {
        sums[(warp_ * kRows + t_ * 2 + e) * 2] = max_[e];
        sums[(warp_ * kRows + t_ * 2 + e) * 2 + 1] = sum;
      }
    }
#pragma unroll
    for (int i = 0; i < 2 * kParts; ++i) {
      int const part = i / 2, number = i % 2 * 2 + t_ / 2, group = g_ * (kGroups / 8) + number;
      int const column = kVector == 2 ? (group + part * 4) * 2 : group * 4 + part * 2;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float* const target = outputs + (warp_ * kRows + t_ % 2 * 2 + e) * kColumns + column;
        *reinterpret_cast<float2*>(target) = make_float2(o_[i][e], o_[i][2 + e]);
      }
    }
    __syncthreads();
    PartialMemory const memory{args_.partial, min(kRows, args_.seq * args_.group), args_.head_size};
    write_block<Shape::kWarps, kRows>(
        args_, memory, parts, rows_, 0, rows_.count, sums,
        [&](int w, int row, int column) { return outputs[(w * kRows + row) * kColumns + column]; });
    meet_blocks<Shape::kThreads>(args_, memory, at.outer * args_.batch + at.b, parts, rows_, flag_, outputs, stamps_);
  }

 private:
  /// Token of row r < 8 of an mma: rows 2 t, t = 0 to 3, are neighbours, and so are rows 2 t + 1.
  __device__ __forceinline__ static int token_of(int r) { return r / 2 + r % 2 * 4; }

  /// Byte permutation that makes the offset in a table of one of four codes and a column: byte 0 the column, byte 1 the
  /// code, whose number is to be added, bytes 2 and 3 the plane.
  static constexpr uint32_t kSelect = 0x6504u;

  /// What a row's bytes are displaced by, so that rows that are read together lie in different banks.
  __device__ __forceinline__ static int displaced(int row) { return kGroups == 64 ? (row & 2) * 16 : 0; }

  __device__ __forceinline__ int32_t first_token(int32_t tile) const {
    return tile * Shape::kTileTokens + warp_ * Shape::kTokens;
  }

  /// As fetch_codes; but where a lane's codes of a whole tile are depends on nothing but the tile's number.
  __device__ __forceinline__ void fetch(void const* cache, char* target, int32_t tile) const {
    if (tile >= 0) {
      char const* const all = static_cast<char const*>(cache);
      char const* const source = all + own_ + int64_t{tile} * (Shape::kTileTokens * kGroups);
      int const row = lane_ / kChunks;
      uint32_t const to = shared_address(target + row * kGroups + ((lane_ % kChunks * 16) ^ displaced(row)));
      int32_t const left = length_ - first_token(tile);
      bool const whole = left >= Shape::kTokens;
#pragma unroll
      for (int i = 0; i < Shape::kTokens / kRowsAtOnce; ++i) {
        int const step = i * kRowsAtOnce;
        if (whole) {
          cp_async_16(to + static_cast<uint32_t>(step * kGroups), source + step * kGroups, true);
        } else {
          bool const valid = row + step < left;
          cp_async_16(to + static_cast<uint32_t>(step * kGroups), valid ? source + step * kGroups : all, valid);
        }
      }
    }
    cp_async_commit();
  }

  __device__ __forceinline__ static uint32_t word_at(char const* pointer) {
    return *reinterpret_cast<uint32_t const*>(pointer);
  }

  /// Scores of the warp's tokens: s[m] token 8 m + token_of(g), rows 2 (t % 2) and the next.
  __device__ __forceinline__ void score(float (&s)[kTiles][2]) const {
    float sum[kTiles][4];
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[m][e] = 0.0f;
    }
#pragma unroll
    for (int turn = 0; turn < kKeyWords; ++turn) {
      // Eight tokens read different words of their codes: no two from one bank.
      int const word = (turn + key_turn_) & (kKeyWords - 1);
      uint32_t const column = static_cast<uint32_t>(word) * 32u;
      char const* const own = codes_ + row_ * kGroups + ((t_ * (kGroups / 4) + word * 4) ^ displaced(row_));
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        uint32_t const codes = word_at(own + m * 8 * kGroups);
#pragma unroll
        for (int j = 0; j < 4; j += 2) {
          uint2 const first = entry(permute_bytes(codes, key_column_[j] + column, key_select_[j]));
          uint2 const second = entry(permute_bytes(codes, key_column_[j + 1] + column, key_select_[j + 1]));
          uint32_t const a[4] = {first.x, first.y, second.x, second.y};
          mma_f16(sum[m], a, pick_, pick_);
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int e = 0; e < 2; ++e) s[m][e] = t_ % 2 == 0 ? sum[m][e] : sum[m][2 + e];
    }
  }

  __device__ __forceinline__ uint2 entry(uint32_t offset) const {
    return *reinterpret_cast<uint2 const*>(scores_ + offset);
  }

  /// Scores to weights in the layout of an mma's B; rescales outputs and sums where a maximum grows.
  __device__ __forceinline__ void weigh(float (&s)[kTiles][2], uint32_t (&p)[kTiles], int32_t first) {
    if (first + Shape::kTokens > all_visible_) mask(s, first);
    float high[2];
    bool grows = false;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      high[e] = s[0][e];
#pragma unroll
      for (int i = 1; i < kTiles; ++i) high[e] = fmaxf(high[e], s[i][e]);
      grows |= high[e] > max_[e] + kSlack;
    }
    if (__any_sync(0xffffffffu, grows)) raise_origins(high, max_, sum_, o_);
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float const origin = usable_max(max_[e]);
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        s[i][e] = exp2_approx(s[i][e] - origin);
        sum_[e] += s[i][e];
      }
    }
#pragma unroll
    for (int m = 0; m < kTiles; ++m) p[m] = transpose_8x8(round_pair<T>(s[m][0], s[m][1]));
  }

  /// -infinity for tokens that a query row does not see.
  __device__ __forceinline__ void mask(float (&s)[kTiles][2], int32_t first) const {
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (first + m * 8 + row_ >= visible_[e]) s[m][e] = -INFINITY;
      }
    }
  }

  /// Add weights times values of 16 tokens, eights m and m + 1.
  __device__ __forceinline__ void mix(int m, uint32_t p, uint32_t next_p) {
    uint32_t words[4][kValueWords];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      int const row = m * 8 + k / 2 * 8 + k % 2 * 4 + t_;  // token_of(2 t + k % 2)
      char const* const own =
          codes_ + Shape::kCodeBytes + row * kGroups + ((g_ * (kGroups / 8)) ^ displaced(k % 2 * 4 + t_));
      if constexpr (kValueWords == 2) {
        uint2 const two = *reinterpret_cast<uint2 const*>(own);
        words[k][0] = two.x, words[k][1] = two.y;
      } else {
        words[k][0] = word_at(own);
      }
    }
    // Of step i and the first pair of numbers. The second pair's are those of the step that is two further on.
    uint32_t weights[4][2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      bool const agree = ((i + t_) & 3) == g_ / 4;  // the lane's group that it looks up, and the column's
      weights[i][0] = agree ? p : 0u, weights[i][1] = agree ? next_p : 0u;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t entry[4][kParts];
#pragma unroll
      for (int k = 0; k < 4; ++k) look_up(words[k], i, entry[k]);
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        // Two channels of four tokens to four tokens of two channels.
        uint32_t const a[4] = {permute_bytes(entry[0][part], entry[1][part], 0x5410u),
                               permute_bytes(entry[0][part], entry[1][part], 0x7632u),
                               permute_bytes(entry[2][part], entry[3][part], 0x5410u),
                               permute_bytes(entry[2][part], entry[3][part], 0x7632u)};
#pragma unroll
        for (int pair = 0; pair < 2; ++pair) {
          uint32_t const(&weight)[2] = weights[(i + 2 * pair) & 3];
          mma_16bit<T>(o_[part * 2 + pair], a, weight[0], weight[1]);
        }
      }
    }
  }

  /// Centroids of one of four groups, and of the one four groups on; or the two words of a longer centroid.
  __device__ __forceinline__ void look_up(uint32_t const (&codes)[kValueWords], int i, uint32_t (&entry)[kParts]) const {
    if constexpr (kVector == 4) {
      uint32_t const offset = permute_bytes(codes[0], value_column_[i], value_select_[i]);
      uint2 const two = *reinterpret_cast<uint2 const*>(values_ + offset);
      entry[0] = two.x, entry[1] = two.y;
    } else {
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        uint32_t const offset = permute_bytes(codes[part], value_column_[i], value_select_[i]);
        entry[part] = word_at(values_ + offset + part * 128);
      }
    }
  }

  VqArgs<T> const& vq_;
  AttentionArgs<T> const& args_;
  Stamps stamps_;
  List list_;
  int lane_, warp_, g_, t_;
  char* scores_;  // table of products, rows of 256 bytes by code; then memory to merge in
  char* values_;  // table of the values' centroids, rows of 256 bytes by code
  char* codes_;   // this warp's codes: of keys, then of values
  int32_t* flag_;  // whether this block finished a segment
  int row_;        // token of the lane's rows of scores
  int key_turn_;   // the word of a key's codes that the lane begins with
  uint32_t key_select_[4], value_select_[4];  // byte permutations: code and column to an offset in a table
  uint32_t key_column_[4], value_column_[4];  // of the lane's groups, with the plane
  uint32_t pick_;
  SegmentRows rows_;
  int32_t length_;
  int64_t own_;  // the lane's codes of the warp's first tile in the cache, in bytes
  float o_[2 * kParts][4];  // by part and pair of numbers: channels of the row, rows 2 (t % 2).. of the number of t / 2
  float max_[2], sum_[2];
  int32_t visible_[2], all_visible_;
};

template <class Traits>
__global__ void __launch_bounds__(Traits::Shape::kThreads, 1)
    attention_vq_grouped(VqArgs<typename Traits::T> const args) {
  extern __shared__ __align__(128) char shared[];
  GroupedVqKernel<Traits>(args, shared).run();
}

}  // namespace graphopt::attention
