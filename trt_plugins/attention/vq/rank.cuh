// Codes of many new tokens: tensor cores rank the centroids, and what could be the nearest is compared exactly.
//
// |x - c|^2 / 2 = |x|^2 / 2 - x . c + |c|^2 / 2 is what an mma adds to |x|^2 / 2: x and c are elements of T, and |c|^2
// / 2 is three of them times powers of two. Such a score is positive, so that its bits are ordered like an integer, and
// one instruction takes the least of three. Each lane keeps the least score of every 8 centroids that it meets for two
// tokens. What is within the rounding of both sides of the least one is looked at again, with the distances of the
// definition.
#pragma once

#include <cstdint>
#include <cstring>

#include "attention/mma.cuh"
#include "attention/vq/encode.cuh"

namespace graphopt::attention {

constexpr int kRankTokens = 16;  // rows of an mma
constexpr int kRankSets = 8;     // of 32 centroids, 8 of which a lane meets

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

/// Two neighbouring elements of a 16-bit T.
template <class T>
__device__ __forceinline__ uint32_t word_of(float low, float high) {
  return round_pair<T>(low, high);
}

/// The elements of T in a word.
template <class T>
__device__ __forceinline__ void unpack_word(uint32_t word, float& low, float& high) {
  T pair[2];
  memcpy(pair, &word, sizeof(word));
  low = to_float(pair[0]), high = to_float(pair[1]);
}

/// A codebook as a warp holds it: the B operands of products, where lane l has rows 2 (l % 4).. of column l / 4.
template <class T, int kVector>
class RankedBook {
  static constexpr int kWords = kVector / 2;
  static_assert(kVector + 3 <= 8, "elements and halves of squares are the 8 rows of an mma's B");

 public:
  /// book: [256, kVector]. exact: the same as float, in shared memory of this warp.
  __device__ __forceinline__ RankedBook(T const* book, float* exact) : exact_(exact), t_(threadIdx.x % 4) {
    uint32_t const* const words = reinterpret_cast<uint32_t const*>(book);
    float largest = 0.0f;
#pragma unroll
    for (int n = 0; n < kEntries / 8; ++n) {
      int const code = n * 8 + lane() / 4;
      uint32_t word[kWords], own = 0;
      float square = 0.0f;
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        word[w] = __ldg(words + code * kWords + w);
        float c[2];
        unpack_word<T>(word[w], c[0], c[1]);
        square += c[0] * c[0] + c[1] * c[1];
        if (t_ == static_cast<uint32_t>(w))
          own = word[w] ^ 0x80008000u, *reinterpret_cast<float2*>(exact_ + code * kVector + w * 2) = {c[0], c[1]};
      }
      largest = fmaxf(largest, square);
      if (t_ == kWords) own = word_of<T>(part(square, 0), part(square, 1));
      if (t_ == kWords + 1) own = word_of<T>(part(square, 2), 0.0f);
      b_[n] = own;
    }
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, offset));
    }
    longest_ = largest;
    __syncwarp();
  }

  /// Codes of two vectors, rows l / 4 and l / 4 + 8 of 16, whose elements are words of shared memory. Called by whole
  /// warps. Returns that of the first to lanes 0 and 1 of four, that of the second to the others.
  __device__ __forceinline__ uint32_t nearest(uint32_t const* (&row)[2]) const {
    uint32_t a[2] = {constants(), constants()};
    float x[2][kVector], start[2], slack[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float square = 0.0f;
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        uint32_t const word = row[r][w];
        if (t_ == static_cast<uint32_t>(w)) a[r] = word;
        unpack_word<T>(word, x[r][2 * w], x[r][2 * w + 1]);
        square += x[r][2 * w] * x[r][2 * w] + x[r][2 * w + 1] * x[r][2 * w + 1];
      }
      // Partial sums are at most |x|^2 + |c|^2, of which neither side is off by 32 roundings of 2^-24; the smallest
      // number of a part is 2^-31.
      slack[r] = 0x1p-17f * (square + longest_) + 0x1p-30f;
      start[r] = 0.5f * square + slack[r];
    }
    int32_t best[2][kRankSets];
#pragma unroll
    for (int set = 0; set < kRankSets; ++set) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float s[4] = {start[0], start[0], start[1], start[1]};
        mma_16bit_short<T>(s, a, b_[set * 4 + i]);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          int32_t const first = __float_as_int(s[2 * r]), second = __float_as_int(s[2 * r + 1]);
          best[r][set] = i == 0 ? min(first, second) : __vimin3_s32(best[r][set], first, second);
        }
      }
    }
    return decide(x, best, slack);
  }

 private:
  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }

  /// |c|^2 / 2 = 2^15 part 0 + 2^4 part 1 + 2^-7 part 2: even the largest and the smallest T are far from being none.
  __device__ __forceinline__ static float part(float square, int i) {
    constexpr float kScale[3] = {0x1p15f, 0x1p4f, 0x1p-7f}, kInverse[3] = {0x1p-15f, 0x1p-4f, 0x1p7f};
    float rest = 0.5f * square, rounded = 0.0f;
#pragma unroll
    for (int k = 0; k <= i; ++k) {
      rounded = to_float(from_float<T>(rest * kInverse[k]));
      rest -= rounded * kScale[k];
    }
    return rounded;
  }

  /// This lane's elements of A that multiply the parts.
  __device__ __forceinline__ uint32_t constants() const {
    uint32_t const upper = t_ == kWords ? word_of<T>(0x1p15f, 0x1p4f) : 0u;
    return t_ == kWords + 1 ? word_of<T>(0x1p-7f, 0.0f) : upper;
  }

  /// The nearest centroid, ties to the lowest code; 0 where no distance is finite.
  __device__ __forceinline__ uint32_t decide(float const (&x)[2][kVector], int32_t const (&best)[2][kRankSets],
                                             float const (&slack)[2]) const {
    uint32_t sets[2];  // of the four lanes, that they must look at again: eight bits each
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      int32_t least = best[r][0];
#pragma unroll
      for (int set = 1; set < kRankSets; ++set) least = min(least, best[r][set]);
      least = min(least, __shfl_xor_sync(0xffffffffu, least, 1));
      least = min(least, __shfl_xor_sync(0xffffffffu, least, 2));
      float const reach = __int_as_float(least) + slack[r];
      int32_t const within = reach < INFINITY ? __float_as_int(reach) : INT32_MAX;
      uint32_t own = 0;
#pragma unroll
      for (int set = 0; set < kRankSets; ++set) own |= best[r][set] <= within ? 1u << set : 0u;
      own <<= 8 * t_;
      own |= __shfl_xor_sync(0xffffffffu, own, 1);
      sets[r] = own | __shfl_xor_sync(0xffffffffu, own, 2);
    }
    bool const second = t_ >= 2;  // of the two vectors
    float own[kVector];
#pragma unroll
    for (int e = 0; e < kVector; ++e) own[e] = second ? x[1][e] : x[0][e];
    float distance = INFINITY;
    uint32_t code = 0;
    for (uint32_t left = second ? sets[1] : sets[0]; left != 0; left &= left - 1) {
      look_again(own, static_cast<uint32_t>(__ffs(static_cast<int>(left)) - 1), distance, code);
    }
    __syncwarp();
    take_nearer(__shfl_xor_sync(0xffffffffu, distance, 1), __shfl_xor_sync(0xffffffffu, code, 1), distance, code);
    return code;
  }

  /// Half of the eight centroids of a set that lane `number / 8` of four met; the other half is another lane's.
  __device__ __forceinline__ void look_again(float const (&x)[kVector], uint32_t number, float& distance,
                                             uint32_t& code) const {
    uint32_t const first = number % 8 * 32 + t_ % 2 * 16 + number / 8 * 2;
    float least = INFINITY;
    uint32_t its = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t const candidate = first + i / 2 * 8 + i % 2;
      float const found = squared_distance(x, exact_ + candidate * kVector);
      if (found < least) least = found, its = candidate;
    }
    take_nearer(least, its, distance, code);
  }

  __device__ __forceinline__ static void take_nearer(float its, uint32_t candidate, float& distance, uint32_t& code) {
    if (its < distance || (its == distance && candidate < code)) distance = its, code = candidate;
  }

  float* exact_;
  uint32_t t_;
  float longest_;  // squared, of the longest centroid
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
  auto const store_codes = [&](uint32_t from, int buffer) {
    if (thread >= Shape::kTokens || from + thread >= tokens) return;
    uint8_t* const place = code_place(args, value, from + thread, unit, groups);
    if (place != nullptr) *reinterpret_cast<uint2*>(place) = *reinterpret_cast<uint2 const*>(codes[buffer][thread]);
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
      uint32_t const* rows[2] = {reinterpret_cast<uint32_t const*>(mine),
                                 reinterpret_cast<uint32_t const*>(mine + 8 * Shape::kPitch)};
      uint32_t const code = book.nearest(rows);
      if (lane % 2 == 0) codes[buffer][at + lane / 4 + lane % 4 * 4][warp] = static_cast<uint8_t>(code);
    }
  }
  __syncthreads();
  store_codes(first - step, buffer ^ 1);
}

}  // namespace graphopt::attention
