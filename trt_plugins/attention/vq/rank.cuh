// Codes of many new tokens: tensor cores rank the centroids, and what could be the nearest is compared exactly.
//
// |x - c|^2 / 2 = |x|^2 / 2 - x . c + |c|^2 / 2 is what an mma adds to |x|^2 / 2, of float16 numbers: x and c times a
// power of two that makes the longest centroid about 1, and |c|^2 / 2 as the sum of two. What |x|^2 / 2 is rounded by
// is the same for all centroids, and a sum near 0 is rounded to float16 finely, so 11 bits rank. Scores are positive,
// hence ordered like integers, two to a register, and one instruction takes the least of three. Each lane keeps the
// least of every four that it meets for a token. What is within the rounding of both sides of the least one is looked
// at again, with the distances of the definition.
#pragma once

#include <cstdint>
#include <cstring>

#include "attention/mma.cuh"
#include "attention/vq/encode.cuh"

namespace graphopt::attention {

constexpr int kRankTokens = 16;  // rows of an mma
constexpr int kRankSets = 8;     // of 32 centroids; a lane meets two times four of them

/// Sizes of a block: eight neighbouring groups of channels, a warp for each, and as many tokens at a time as give every
/// thread 16 bytes to bring.
template <int kVector>
struct RankShape {
  static constexpr int kThreads = 32 * kEncodeWarps;
  static constexpr int kChannels = kEncodeWarps * kVector;
  static constexpr int kChunks = kChannels / 8;  // of 16 bytes
  static constexpr int kTokens = kThreads / kChunks;
  static constexpr int kPitch = kChannels * 2 + 16;  // bytes; rows that are read together lie in different banks
};

/// The elements of T in a word.
template <class T>
__device__ __forceinline__ void unpack_word(uint32_t word, float& low, float& high) {
  T pair[2];
  memcpy(pair, &word, sizeof(word));
  low = to_float(pair[0]), high = to_float(pair[1]);
}

/// The least of three pairs of positive float16.
__device__ __forceinline__ uint32_t least_pairs(uint32_t a, uint32_t b, uint32_t c) {
#if __CUDA_ARCH__ >= 900
  return __vimin3_s16x2(a, b, c);
#else
  __half2 pair[3];
  memcpy(&pair[0], &a, 4), memcpy(&pair[1], &b, 4), memcpy(&pair[2], &c, 4);
  __half2 const least = __hmin2(__hmin2(pair[0], pair[1]), pair[2]);
  memcpy(&a, &least, 4);
  return a;
#endif
}

/// A pair of the same float16, rounded up.
__device__ __forceinline__ uint32_t pair_above(float x) { return __half_as_ushort(__float2half_ru(x)) * 0x10001u; }

/// A codebook as a warp holds it: the B operands of products, where lane l has rows 2 (l % 4).. of column l / 4.
template <class T, int kVector>
class RankedBook {
  static constexpr int kWords = kVector / 2;
  static_assert(kVector + 2 <= 8, "elements and halves of squares are the 8 rows of an mma's B");
  // |c|^2 / 2 = part 0 + 2^-10 part 1.
  static constexpr float kPart = 0x1p-10f;
  // Of |x|^2 + |c|^2, twice: what a sum is off by before it is rounded to float16. Where it is not known that eight
  // products are added up at once, the first four are taken to be rounded, too.
#if __CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 900
  static constexpr float kSumError = 0x1p-17f;
#else
  static constexpr float kSumError = kVector == 2 ? 0x1p-17f : 0x1p-9f;
#endif

 public:
  /// book: [256, kVector]. exact: the same as float, in shared memory of this warp.
  __device__ __forceinline__ RankedBook(T const* book, float* exact) : exact_(exact), t_(threadIdx.x % 4) {
    uint32_t const* const words = reinterpret_cast<uint32_t const*>(book);
    float largest = 0.0f;
    for (int at = lane(); at < kEntries; at += 32) {
      float square = 0.0f;
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        float2 c;
        unpack_word<T>(__ldg(words + at * kWords + w), c.x, c.y);
        square += c.x * c.x + c.y * c.y;
        *reinterpret_cast<float2*>(exact_ + at * kVector + w * 2) = c;
      }
      largest = fmaxf(largest, square);
    }
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, offset));
    }
    usable_ = largest > 0.0f && largest < INFINITY;
    int const exponent = (static_cast<int>(__float_as_uint(largest) >> 23) - 127) >> 1;
    scale_ = usable_ ? __uint_as_float(static_cast<uint32_t>(127 - exponent) << 23) : 1.0f;
    longest_ = largest * scale_ * scale_;
    __syncwarp();
#pragma unroll
    for (int n = 0; n < kEntries / 8; ++n) {
      float const* const c = exact_ + (n * 8 + lane() / 4) * kVector;
      float low = 0.0f, high = 0.0f, half_square = 0.0f;
#pragma unroll
      for (int e = 0; e < kVector; ++e) half_square += 0.5f * (c[e] * scale_) * (c[e] * scale_);
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        if (t_ == static_cast<uint32_t>(w)) low = -c[2 * w] * scale_, high = -c[2 * w + 1] * scale_;
      }
      float const part = __half2float(__float2half_rn(half_square));
      if (t_ == kWords) low = part, high = (half_square - part) * (1.0f / kPart);
      b_[n] = round_pair<__half>(low, high);
    }
  }

  /// Codes of two vectors, rows l / 4 and l / 4 + 8 of 16, whose elements are words of shared memory. Called by whole
  /// warps. Returns that of the first to even lanes, that of the second to odd ones.
  __device__ __forceinline__ uint32_t nearest(uint32_t const* const (&row)[2]) const {
    uint32_t a[2], start[2];
    float x[2][kVector], slack[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float square = 0.0f;
      a[r] = t_ == kWords ? round_pair<__half>(1.0f, kPart) : 0u;
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        unpack_word<T>(row[r][w], x[r][2 * w], x[r][2 * w + 1]);
        float const low = x[r][2 * w] * scale_, high = x[r][2 * w + 1] * scale_;
        square += low * low + high * high;
        if (t_ == static_cast<uint32_t>(w)) a[r] = round_pair<__half>(low, high);
      }
      slack[r] = kSumError * (square + longest_) + 0x1p-22f;
      start[r] = pair_above(0.5f * square + slack[r]);
    }
    uint32_t best[2][kRankSets];
#pragma unroll
    for (int set = 0; set < kRankSets; ++set) {
      uint32_t s[4][2];
#pragma unroll
      for (int i = 0; i < 4; ++i) mma_f16_short(s[i], a, b_[set * 4 + i], start);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        best[r][set] = least_pairs(least_pairs(s[0][r], s[1][r], s[2][r]), s[3][r], s[3][r]);
      }
    }
    return decide(x, best, slack);
  }

 private:
  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }

  /// The nearest centroid, ties to the lowest code; 0 where no distance is finite.
  __device__ __forceinline__ uint32_t decide(float const (&x)[2][kVector], uint32_t const (&best)[2][kRankSets],
                                             float const (&slack)[2]) const {
    uint32_t row[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      uint32_t const first = least_pairs(best[r][0], best[r][1], best[r][2]);
      uint32_t const second = least_pairs(best[r][3], best[r][4], best[r][5]);
      uint32_t const pair = least_pairs(least_pairs(first, second, best[r][6]), best[r][7], best[r][7]);
      row[r] = least_pairs(pair, __byte_perm(pair, 0u, 0x1032), pair);
    }
    uint32_t rows = __byte_perm(row[0], row[1], 0x7610);  // the least of either row
#pragma unroll
    for (int offset = 1; offset < 4; offset *= 2) {
      rows = least_pairs(rows, __shfl_xor_sync(0xffffffffu, rows, offset), rows);
    }
    float least[2], distance[2] = {INFINITY, INFINITY};
    uint32_t code[2] = {0, 0}, sets[2];
    unpack_word<__half>(rows, least[0], least[1]);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      // Rounded to float16 twice, by 2^-11 each time.
      uint32_t const within = pair_above(least[r] * (1.0f + 0x1p-9f) + slack[r]);
      uint32_t half[2] = {0, 0};  // those of even columns in the lower 16 bits
#pragma unroll
      for (int set = 0; set < kRankSets; ++set) half[set % 2] |= not_above(best[r][set], within) & 0x10001u << set;
      sets[r] = usable_ && least[r] < INFINITY ? half[0] | half[1] : 0xff00ffu;
    }
    // The first of each row without a branch: there is seldom another one.
#pragma unroll
    for (int r = 0; r < 2; ++r) look_again(x[r], sets[r], distance[r], code[r]);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      for (sets[r] &= sets[r] - 1; sets[r] != 0; sets[r] &= sets[r] - 1) {
        look_again(x[r], sets[r], distance[r], code[r]);
      }
    }
    __syncwarp();
    bool const odd = t_ % 2 != 0;
    float mine = odd ? distance[1] : distance[0];
    uint32_t result = odd ? code[1] : code[0];
    take_nearer(__shfl_xor_sync(0xffffffffu, odd ? distance[0] : distance[1], 1),
                __shfl_xor_sync(0xffffffffu, odd ? code[0] : code[1], 1), mine, result);
    float const other = __shfl_xor_sync(0xffffffffu, mine, 2);
    take_nearer(other, __shfl_xor_sync(0xffffffffu, result, 2), mine, result);
    return result;
  }

  /// All bits of a half that is not above the other's.
  __device__ __forceinline__ static uint32_t not_above(uint32_t a, uint32_t b) {
    __half2 pair[2];
    memcpy(&pair[0], &a, 4), memcpy(&pair[1], &b, 4);
    return __hle2_mask(pair[0], pair[1]);
  }

  /// The four centroids of this lane's columns, even or odd ones, of the first of `sets`, if there is any.
  __device__ __forceinline__ void look_again(float const (&x)[kVector], uint32_t sets, float& distance,
                                             uint32_t& code) const {
    uint32_t const number = static_cast<uint32_t>(__ffs(static_cast<int>(sets != 0 ? sets : 1u)) - 1);
    uint32_t const first = number % 16 * 32 + t_ * 2 + number / 16;
    float least = INFINITY;
    uint32_t its = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float const found = squared_distance(x, exact_ + (first + i * 8) * kVector);
      if (found < least) least = found, its = first + i * 8;
    }
    if (sets != 0) take_nearer(least, its, distance, code);
  }

  __device__ __forceinline__ static void take_nearer(float its, uint32_t candidate, float& distance, uint32_t& code) {
    if (its < distance || (its == distance && candidate < code)) distance = its, code = candidate;
  }

  float* exact_;
  uint32_t t_;
  bool usable_;    // whether the centroids can be ranked
  float scale_;    // what elements are multiplied by for it
  float longest_;  // squared, of the longest centroid, scaled
  uint32_t b_[kEntries / 8];
};

/// 16 bytes of a key or value of one new token on their way to shared memory; keys are rotated and rounded to T.
template <class T>
struct RankedChunk {
  Vec<T> own, other, cos, sin;

  /// Elements column.. of key/value head h.
  __device__ __forceinline__ void load(EncodeArgs<T> const& args, bool value, uint32_t token, int32_t h,
                                       int32_t column) {
    AppendArgs<T> const& a = args.append;
    T const* const row = (value ? a.v : a.k) + (int64_t{token} * a.kv_heads + h) * a.head_size;
    own = load_cached(row + column);
    if (value || !a.rotary) return;
    int32_t const half = a.head_size / 2;
    int64_t const table = int64_t{a.tables == 1 ? token % static_cast<uint32_t>(a.seq) : token} * a.head_size + column;
    other = load_cached(row + (column < half ? column + half : column - half));
    cos = load_cached(a.cos + table), sin = load_cached(a.sin + table);
  }

  __device__ __forceinline__ Vec<T> finish(EncodeArgs<T> const& args, bool value, int32_t column) const {
    AppendArgs<T> const& a = args.append;
    if (value || !a.rotary) return own;
    bool const low = column < a.head_size / 2;
    float out[Vec<T>::kSize];
#pragma unroll
    for (int e = 0; e < Vec<T>::kSize; ++e) {
      out[e] = rotated_value(own.get(e), low ? -other.get(e) : other.get(e), cos.get(e), sin.get(e));
    }
    Vec<T> rounded;
    rounded.set(out);
    return rounded;
  }
};

/// As attention_encode, for many tokens of a 16-bit T, D a multiple of 8 kVector, operands aligned to 16 bytes and
/// codes to 8. Grid: (2 Hkv D / (8 kVector) and blocks for queries, parts of the tokens).
template <class T, int kVector>
__global__ void __launch_bounds__(RankShape<kVector>::kThreads, 2) attention_rank(EncodeArgs<T> const args) {
  using Shape = RankShape<kVector>;
  AppendArgs<T> const& a = args.append;
  if (static_cast<int32_t>(blockIdx.x) >= args.blocks) return append_queries(args);
  __shared__ __align__(16) float exact[kEncodeWarps][kEntries * kVector];
  __shared__ __align__(16) char tile[2][Shape::kTokens * Shape::kPitch];
  __shared__ __align__(8) uint8_t codes[2][Shape::kTokens][kEncodeWarps];
  int32_t const thread = static_cast<int32_t>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  int32_t const groups = a.head_size / kVector, units = a.kv_heads * groups;
  int32_t unit = static_cast<int32_t>(blockIdx.x) * kEncodeWarps;  // the block's first
  bool const value = unit >= units;
  unit -= value ? units : 0;
  RankedBook<T, kVector> const book(
      (value ? args.codebook_v : args.codebook_k) + int64_t{unit + warp} * kEntries * kVector, exact[warp]);
  wait_for_predecessor();
  release_successor();

  int32_t const row = thread / Shape::kChunks, chunk = thread % Shape::kChunks;
  int32_t const h = unit / groups, column = unit % groups * kVector + chunk * 8;
  uint32_t const tokens = static_cast<uint32_t>(args.tokens), step = gridDim.y * Shape::kTokens;
  uint32_t first = blockIdx.y * Shape::kTokens;
  T* const expanded = value ? args.expanded_v : args.expanded_k;
  auto const store_codes = [&](uint32_t from, int buffer) {
    if (from + row >= tokens) return;
    int64_t const place = cache_row(a, from + row, h);
    if (place < 0) return;
    uint8_t const* const eight = codes[buffer][row];
    uint8_t* const target = (value ? args.codes_v : args.codes_k) + place * groups + unit % groups;
    if (chunk == 0) *reinterpret_cast<uint2*>(target) = *reinterpret_cast<uint2 const*>(eight);
    if (expanded == nullptr) return;
    float out[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      int32_t const group = chunk * (8 / kVector) + e / kVector;
      out[e] = exact[group][eight[group] * kVector + e % kVector];
    }
    Vec<T> vector;
    vector.set(out);
    store(expanded + place * a.head_size + column, vector);
  };
  RankedChunk<T> next;
  next.load(args, value, min(first + row, tokens - 1), h, column);
  int buffer = 0;
  for (; first < tokens; first += step, buffer ^= 1) {
    store(reinterpret_cast<T*>(tile[buffer] + row * Shape::kPitch + chunk * 16), next.finish(args, value, column));
    __syncthreads();
    if (first >= step) store_codes(first - step, buffer ^ 1);
    next.load(args, value, min(first + step + row, tokens - 1), h, column);
#pragma unroll 1
    for (int at = 0; at < Shape::kTokens; at += kRankTokens) {
      char const* const mine = tile[buffer] + (at + lane / 4) * Shape::kPitch + warp * kVector * 2;
      uint32_t const* const rows[2] = {reinterpret_cast<uint32_t const*>(mine),
                                       reinterpret_cast<uint32_t const*>(mine + 8 * Shape::kPitch)};
      uint32_t const code = book.nearest(rows);
      if (lane % 4 < 2) codes[buffer][at + lane / 4 + lane % 4 * 8][warp] = static_cast<uint8_t>(code);
    }
  }
  __syncthreads();
  store_codes(first - step, buffer ^ 1);
}

}  // namespace graphopt::attention
