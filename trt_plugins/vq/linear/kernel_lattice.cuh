// Kernel for one token and two codes of the lattice E8: products instead of points are looked up.
//
// A point is too much for one table, but its halves are not: there are 32 patterns of four absolute coordinates in the
// first half of a row of E8's table and 44 in the second, each with 16 signs. For every group of eight x there are the
// products of both halves, 512 and 704 float32. Where they are for a code says the sum, bit by bit, of two words: that
// of its row of E8's table and that of its signs.
//
//   maps   [byte][row of E8's table, signs][lane]: 256 bytes for a byte of a code
//   table  [pattern and signs][half][group]: no two lanes meet, they take halves and groups in orders of their own
//
// Shifts of points add +-1/4 of the sum of eight x.
#pragma once

#include <cstdint>

#include "vq/linear/lattice.cuh"
#include "vq/linear/table_walk.cuh"

namespace graphopt::vq {

/// Halves of the rows of E8's table.
struct LatticeHalves {
  static constexpr int kFirst = 32, kSecond = 44;  // patterns
  uint8_t pattern[2][kSecond];                     // bits 2 e and 2 e + 1: |coordinate e| - 1/2
  uint32_t row[kE8Rows];  // bits 0 to 7 and 8 to 15: numbers of the halves' patterns; bit 16: coordinate 7 is negative
  int count[2];
};

constexpr LatticeHalves make_lattice_halves() {
  LatticeHalves halves{};
  E8Table const table = make_e8_table();
  for (int row = 0; row < kE8Rows; ++row) {
    halves.row[row] = table.row[row] & 0x10000u;
    for (int half = 0; half < 2; ++half) {
      auto const pattern = static_cast<uint8_t>(table.row[row] >> (8 * half) & 0xff);
      int& count = halves.count[half];
      int i = 0;
      while (i < count && halves.pattern[half][i] != pattern) ++i;
      if (i == count) halves.pattern[half][count++] = pattern;
      halves.row[row] |= static_cast<uint32_t>(i) << (8 * half);
    }
  }
  return halves;
}

static_assert(make_lattice_halves().count[0] == LatticeHalves::kFirst);
static_assert(make_lattice_halves().count[1] == LatticeHalves::kSecond);
static __device__ LatticeHalves const kLatticeHalves = make_lattice_halves();

/// Sizes for T.
template <class T_>
struct LatticeShape {
  using T = T_;
  static constexpr bool kTiled = false;
  static constexpr int kRows = kTableRows;  // of a unit
  static constexpr int kColumns = 128;      // of a slice
  static constexpr int kGroups = kColumns / 8;
  static constexpr int kDepth = 6;
  static constexpr int kIdle = 16;  // see table_blocks
  using Queue = UnitQueue<T, kDepth>;
  static constexpr int kMapBytes = 64 * 1024;
  static constexpr int kRowBytes = 128;  // of the table: first halves of all groups, then second ones
  static constexpr int kTableBytes = LatticeHalves::kSecond * 16 * kRowBytes;
  static_assert(Queue::kBytes <= kTableAlignment - 1024, "beside what the system keeps");
  /// From the address 0 of shared memory on, or from a little later.
  static constexpr int kSharedBytes = kTableAlignment + kMapBytes + kTableBytes;
};

template <class Shape>
class LatticeProduct {
  using T = typename Shape::T;
  // Of a word of maps: rows of the table, bits 7 to 16 for the half that a lane takes first and from bit 17 on for the
  // other one. Four bits of a row's number are its signs.
  static constexpr int kFirstShift = 7, kSecondShift = 17;
  static constexpr uint32_t kRowMask = 0x1ff80u;
  static constexpr int kPatterns = (LatticeHalves::kSecond + kTableWarps - 1) / kTableWarps;  // of a warp

 public:
  __device__ __forceinline__ LatticeProduct(TableArgs<T> const& args, uint32_t shared)
      : args_(args),
        share_(TableShare::of<false>(args)),
        queue_(args, share_, shared),
        maps_((shared + Shape::Queue::kBytes + kTableAlignment - 1) / kTableAlignment * kTableAlignment),
        lane_(static_cast<int>(threadIdx.x) % 32),
        warp_(static_cast<int>(threadIdx.x) / 32) {
    int const i = lane_ / 4, t = lane_ % 4, first = i % 2;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      uint32_t const table = maps_ + Shape::kMapBytes + group(t, w) * 4;
      halves_[w][0] = table + first * (Shape::kGroups * 4);
      halves_[w][1] = table + (1 - first) * (Shape::kGroups * 4);
    }
    map_ = maps_ + lane_ * 4;
  }

  __device__ __forceinline__ void run() {
    uint32_t digits[kPatterns];
#pragma unroll
    for (int i = 0; i < kPatterns; ++i) digits[i] = kLatticeHalves.pattern[half()][min(pattern(i), patterns() - 1)];
    make_maps();
    float const first = __ldg(args_.ratios), second = __ldg(args_.ratios + 1);
    wait_for_predecessor();
    release_successor();
    auto now = TablePlace<false>::of(args_, share_.begin);
    uint2 x = load_x(now.slice);
    for (int left = share_.count; left > 0;) {
      int const count = min(now.run(args_), left);
      make_table(x, digits);
      x = load_x(now.slice + 1);
      __syncthreads();
#pragma unroll 1
      for (int u = 0; u < count; ++u) {
        float sums[2] = {};
        look_up(sums);
        leave_sum(args_, now.slice, now.row + u * kTableRows, fmaf(sums[1], second, sums[0] * first));
      }
      left -= count;
      now = {now.slice + 1, 0};
      __syncthreads();  // everyone has left the table
    }
  }

 private:
  /// The group of x that this lane's word w of codes belongs to: words are turned, see UnitQueue.
  __device__ __forceinline__ int group(int t, int w) const { return t * 4 + (w + lane_ / 8) % 4; }

  /// What this lane makes of the table: a half of the points, for group lane % kGroups, and patterns number
  /// pattern(i).
  __device__ __forceinline__ int half() const { return lane_ / Shape::kGroups; }
  __device__ __forceinline__ int patterns() const {
    return half() == 0 ? LatticeHalves::kFirst : LatticeHalves::kSecond;
  }
  __device__ __forceinline__ int pattern(int i) const { return warp_ + i * kTableWarps; }

  /// Every lane's maps of this warp's bytes.
  __device__ __forceinline__ void make_maps() const {
    constexpr int kBytes = 256 / kTableWarps;
    uint32_t rows[kBytes];
#pragma unroll
    for (int i = 0; i < kBytes; ++i) rows[i] = __ldg(&kLatticeHalves.row[warp_ * kBytes + i]);
    bool const swapped = lane_ / 4 % 2 != 0;
    int const first = swapped ? kSecondShift : kFirstShift, second = swapped ? kFirstShift : kSecondShift;
#pragma unroll
    for (int i = 0; i < kBytes; ++i) {
      uint32_t const byte = warp_ * kBytes + i, signs = byte & 0x7f, parity = __popc(signs) & 1;
      uint32_t const a = (rows[i] & 0xff) * 16, b = (rows[i] >> 8 & 0xff) * 16 + (rows[i] >> 16) * 8;
      store_word(map_ + byte * 256, a << first | b << second);
      store_word(map_ + byte * 256 + 128, (signs & 15) << first | (signs >> 4 | parity << 3) << second);
    }
  }

  /// This lane's four x of a slice; zeros behind K.
  __device__ __forceinline__ uint2 load_x(int slice) const {
    int const column = slice * Shape::kColumns + lane_ % Shape::kGroups * 8 + half() * 4;
    return column < args_.k ? *reinterpret_cast<uint2 const*>(args_.x + column) : uint2{0, 0};
  }

  /// Products of a slice's x with all halves of points.
  __device__ __forceinline__ void make_table(uint2 words, uint32_t const (&digits)[kPatterns]) {
    Vec<T> vec;
    vec.word[0] = words.x, vec.word[1] = words.y;
    float x[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) x[e] = vec.get(e);
    float eight = (x[0] + x[1]) + (x[2] + x[3]);
    eight += __shfl_xor_sync(0xffffffffu, eight, Shape::kGroups);
#pragma unroll
    for (int w = 0; w < 4; ++w) quarters_[w] = 0.25f * __shfl_sync(0xffffffffu, eight, group(lane_ % 4, w));
#pragma unroll
    for (int i = 0; i < kPatterns; ++i) {
      if (pattern(i) >= patterns()) break;
      float a[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) a[e] = x[e] * (static_cast<float>(digits[i] >> (2 * e) & 3) + 0.5f);
      float const low[4] = {a[0] + a[1], a[1] - a[0], a[0] - a[1], -a[0] - a[1]};  // by signs of coordinates 0 and 1
      float const high[4] = {a[2] + a[3], a[3] - a[2], a[2] - a[3], -a[2] - a[3]};
      uint32_t const place = maps_ + Shape::kMapBytes + pattern(i) * 16 * Shape::kRowBytes + lane_ * 4;
#pragma unroll
      for (int signs = 0; signs < 16; ++signs) {
        store_float(place + signs * Shape::kRowBytes, low[signs % 4] + high[signs / 4]);
      }
    }
  }

  /// Add what the codes of the next unit name, those of either residual apart.
  __device__ __forceinline__ void look_up(float (&sums)[2]) {
    uint32_t word[4];
    queue_.take(word);
#pragma unroll
    for (int w = 0; w < 4; ++w) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        uint32_t const row = load_word(permute_bytes(word[w], map_, 0x7604 + (2 * r << 4)));
        uint32_t const signs = load_word(permute_bytes(word[w], map_, 0x7604 + (2 * r + 1 << 4)) + 128);
        uint32_t const both = row ^ signs;
        // The table begins at a multiple of 2^17.
        sums[r] += load_float((both & kRowMask) | halves_[w][0]);
        sums[r] += load_float((both >> (kSecondShift - kFirstShift) & kRowMask) | halves_[w][1]);
        // Bit 15 of a code: 1 adds, 0 subtracts.
        uint32_t const minus = ~(r == 0 ? word[w] << 16 : word[w]) & 0x80000000u;
        sums[r] += __uint_as_float(__float_as_uint(quarters_[w]) ^ minus);
      }
    }
  }

  TableArgs<T> const& args_;
  TableShare const share_;
  typename Shape::Queue queue_;
  uint32_t const maps_;
  int const lane_, warp_;
  uint32_t map_;           // this lane's
  uint32_t halves_[4][2];  // for each word of codes: where the table begins, of the half that is taken first, then of
                           // the other
  float quarters_[4];      // of the sum of a word's eight x
};

template <class T>
__global__ void __launch_bounds__(kTableThreads, 1) linear_lattice_table(TableArgs<T> const args) {
  extern __shared__ __align__(128) char shared[];
  LatticeProduct<LatticeShape<T>>(args, shared_address(shared)).run();
}

}  // namespace graphopt::vq
