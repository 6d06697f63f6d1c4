// Kernel for few tokens where all rows share codebooks and all of X fits beside them in shared memory.
//
// As kernel_few.cuh, but one block for each multiprocessor, which takes 16 rows after the other and whose warps split
// K. So every multiprocessor has the same work whatever the sizes are, codebooks and X are brought once, and where two
// blocks fit, the next launch's block brings its codebooks while this one's multiplies.
//
// For one token, shifts of lattice points are left out of the points: a group of eight adds +-1/4 of the sum of its x.
#pragma once

#include <cstdint>

#include "vq/linear/queue.cuh"

namespace graphopt::vq {

/// kTokenTiles: of 8 tokens; 0: one token. kBlocks: that a multiprocessor shall have room for.
template <int kWarps_, int kTokenTiles_, int kBlocks_>
struct RowsShape {
  static constexpr bool kOneToken = kTokenTiles_ == 0;
  static constexpr int kWarps = kWarps_;
  static constexpr int kTokenTiles = kOneToken ? 1 : kTokenTiles_;
  static constexpr int kBlocks = kBlocks_;
  static constexpr int kTokens = kOneToken ? 1 : 8 * kTokenTiles;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRows = 16;
  static_assert(kRows * kTokens <= kThreads, "one thread for each sum of 16 rows");
};

template <class Weights, class Shape>
class RowTiles {
  using T = typename Weights::T;
  using Codes = typename Weights::Codes;
  using Decoder = typename Weights::Decoder;
  static constexpr int kRows = Shape::kRows;
  static constexpr int kWarps = Shape::kWarps;
  static constexpr int kThreads = Shape::kThreads;
  using Queue = ChunkQueue<Weights, kThreads>;
  static constexpr bool kShifts = Weights::kLattice && Shape::kOneToken;  // are summed apart
  static constexpr int kEights = Codes::kColumns / 8;
  static_assert(!Weights::kTiled && (!kShifts || kEights == 4));

  /// A chunk of this warp: 16 rows from tile * 16 on. Chunks of a tile follow each other, then those of the next.
  struct Place {
    int tile, chunk;

    /// All warps take equally many steps for a tile; some of the last ones lie behind K.
    __device__ __forceinline__ void advance(int chunks, int warp) {
      chunk += kWarps;
      if (chunk - warp < chunks) return;
      chunk = warp;
      ++tile;
    }
  };

 public:
  static constexpr int kChunk = 4 * Codes::kColumns;

  /// Bytes of shared memory: tables, codes, X, two buffers of sums, and the sums of every eight x.
  static constexpr int64_t shared_bytes(int tokens, int64_t chunks) {
    return Weights::kSharedBytes + Queue::kBytes + tokens * chunks * kChunk * int64_t{sizeof(T)} +
           2 * kWarps * tokens * kRows * 4 + (kShifts ? chunks * kChunk / 2 : 0);
  }

  __device__ __forceinline__ RowTiles(FewArgs<T> const& args, uint32_t shared)
      : args_(args),
        table_(shared),
        m0_(static_cast<int>(blockIdx.y) * Shape::kTokens),
        tokens_(min(Shape::kTokens, args.m - m0_)),
        queue_(shared + Weights::kSharedBytes),
        x_(queue_ + Queue::kBytes),
        sums_(x_ + tokens_ * args.chunks * kChunk * static_cast<int>(sizeof(T))),
        eights_(sums_ + 2 * kWarps * tokens_ * kRows * 4),
        lane_(static_cast<int>(threadIdx.x) % 32),
        warp_(static_cast<int>(threadIdx.x) / 32) {
    int const tiles = (args.n + kRows - 1) / kRows;
    begin_ = static_cast<int>(int64_t{tiles} * blockIdx.x / gridDim.x);
    end_ = static_cast<int>(int64_t{tiles} * (blockIdx.x + 1) / gridDim.x);
    ahead_ = {begin_, warp_};
  }

  __device__ __forceinline__ void run() {
    auto const next = [this] { return advance(); };
    Queue queue(queue_, next);
    typename Weights::template Loader<kThreads>(static_cast<int>(threadIdx.x)).copy(args_.codebooks, table_);
    wait_for_predecessor();
    release_successor();
    fetch_columns<Codes, kThreads>(x_, args_.x + int64_t{m0_} * args_.k, args_.k, tokens_, args_.chunks * kChunk,
                                   args_.k);
    cp_async_wait<0>();
    __syncthreads();
    if constexpr (kShifts) {
      sum_eights();
      __syncthreads();
    }
    Decoder const decoder(table_, lane_, args_.ratios);
    Place at{begin_, warp_};
    float factor, bias, sums[Shape::kTokenTiles][4] = {}, shifts[2][2] = {};
    load_epilogue(args_, row_of(begin_), factor, bias);
    int const steps = (end_ - begin_) * ((args_.chunks + kWarps - 1) / kWarps);
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      ChunkCodes<Codes> now;
      queue.take(now, next);
      if (at.chunk < args_.chunks) {
        uint32_t const x = x_ + (at.chunk * kEights * tokens_ * 4 + lane_) * 16;
        if constexpr (kShifts) {
          multiply_points(sums[0], shifts, now, decoder, x, eights_ + (at.chunk * 4 + lane_ % 4) * 16);
        } else {
          multiply_chunk<Weights>(sums, now, decoder, x, tokens_);
        }
      }
      int const tile = at.tile;
      at.advance(args_.chunks, warp_);
      if (at.tile == tile) continue;
      if constexpr (kShifts) add_shifts(sums[0], shifts);
      finish(tile, sums, factor, bias);
      load_epilogue(args_, row_of(at.tile), factor, bias);
#pragma unroll
      for (auto& tokens : sums) tokens[0] = tokens[1] = tokens[2] = tokens[3] = 0.0f;
      shifts[0][0] = shifts[0][1] = shifts[1][0] = shifts[1][1] = 0.0f;
    }
  }

 private:
  /// Where this lane's codes of the next chunk are; past the last one nothing is read.
  __device__ __forceinline__ ChunkPlace advance() {
    int const n = ahead_.tile * kRows + lane_ / 4;
    ChunkPlace const place{args_.codes + int64_t{min(n, args_.n - 1)} * args_.row_bytes,
                           args_.codes + int64_t{min(n + 8, args_.n - 1)} * args_.row_bytes,
                           (ahead_.chunk * 4 + lane_ % 4) * Codes::kBytes,
                           ahead_.tile < end_ && ahead_.chunk < args_.chunks ? args_.row_bytes : 0};
    ahead_.advance(args_.chunks, warp_);
    return place;
  }

  /// The sum of every eight x, in the order of X: lane t's four of a chunk lie together.
  __device__ __forceinline__ void sum_eights() const {
    for (int i = static_cast<int>(threadIdx.x); i < args_.chunks * kEights * 4; i += kThreads) {
      uint32_t w[4];
      load_shared(w, x_ + i * 16);
      Vec<T> x;
      float sum = 0.0f;
#pragma unroll
      for (int e = 0; e < 4; ++e) x.word[e] = w[e];
#pragma unroll
      for (int e = 0; e < 8; ++e) sum += x.get(e);
      int const chunk = i / (kEights * 4), q = i / 4 % kEights, t = i % 4;
      asm volatile("st.shared.f32 [%0], %1;" ::"r"(eights_ + ((chunk * 4 + t) * kEights + q) * 4), "f"(sum) : "memory");
    }
  }

  /// As multiply_chunk for one token, with the shifts of rows g and g + 8 apart. `eights`: of this lane's columns.
  __device__ __forceinline__ static void multiply_points(float (&sums)[4], float (&shifts)[2][2],
                                                         ChunkCodes<Codes> const& codes, Decoder const& decoder,
                                                         uint32_t x, uint32_t eights) {
    uint32_t eight[kEights];
    load_shared(eight, eights);
#pragma unroll
    for (int q = 0; q < kEights; ++q) {
      uint32_t upper[4], lower[4];
      uint32_t b[4];  // columns of tokens that do not exist may hold anything: their sums are not stored
      decoder.template eight<false>(upper, codes.upper, q);
      decoder.template eight<false>(lower, codes.lower, q);
      Decoder::add_shifts(shifts[0], codes.upper, q, __uint_as_float(eight[q]));
      Decoder::add_shifts(shifts[1], codes.lower, q, __uint_as_float(eight[q]));
      uint32_t const first[4] = {upper[0], lower[0], upper[1], lower[1]};
      uint32_t const second[4] = {upper[2], lower[2], upper[3], lower[3]};
      load_shared_if(threadIdx.x % 32 < 4, b, x + q * 64);
      mma<T>(sums, first, b[0], b[1]);
      mma<T>(sums, second, b[2], b[3]);
    }
  }

  /// The row whose sum this thread adds up, if it has one.
  __device__ __forceinline__ static int row_of(int tile) {
    return tile * kRows + static_cast<int>(threadIdx.x) % kRows;
  }

  /// Add what the shifts of a tile's points contribute.
  __device__ __forceinline__ void add_shifts(float (&sums)[4], float (&shifts)[2][2]) const {
    add_quads(sums[0], Decoder::shift_product(shifts[0], args_.ratios));
    add_quads(sums[2], Decoder::shift_product(shifts[1], args_.ratios));
  }

  /// Add `part` of the four lanes of a row to the sum of its first lane, which has token 0's.
  __device__ __forceinline__ void add_quads(float& sum, float part) const {
    part += __shfl_xor_sync(0xffffffffu, part, 1);
    part += __shfl_xor_sync(0xffffffffu, part, 2);
    if (lane_ % 4 == 0) sum += part;
  }

  /// Where warp `warp` leaves a sum of tile `tile`; two tiles take turns.
  __device__ __forceinline__ uint32_t sum_at(int tile, int warp, int token, int row) const {
    return sums_ + (((tile % 2 * kWarps + warp) * tokens_ + token) * kRows + row) * 4;
  }

  /// Add the warps' sums in their order, and store y.
  __device__ __forceinline__ void finish(int tile, float const (&sums)[Shape::kTokenTiles][4], float factor,
                                         float bias) const {
#pragma unroll
    for (int j = 0; j < Shape::kTokenTiles; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        int const token = 8 * j + lane_ % 4 * 2 + e % 2;
        if (token < tokens_) {
          uint32_t const place = sum_at(tile, warp_, token, lane_ / 4 + e / 2 * 8);
          asm volatile("st.shared.f32 [%0], %1;" ::"r"(place), "f"(sums[j][e]) : "memory");
        }
      }
    }
    __syncthreads();
    int const n = row_of(tile), row = n % kRows, token = static_cast<int>(threadIdx.x) / kRows;
    if (token >= tokens_ || n >= args_.n) return;
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) {
      float part;
      asm volatile("ld.shared.f32 %0, [%1];" : "=f"(part) : "r"(sum_at(tile, warp, token, row)) : "memory");
      sum += part;
    }
    args_.y[int64_t{m0_ + token} * args_.n + n] = from_float<T>(fmaf(sum, factor, bias));
  }

  FewArgs<T> const& args_;
  uint32_t const table_;
  int const m0_, tokens_;
  uint32_t const queue_, x_, sums_, eights_;
  int const lane_, warp_;
  int begin_, end_;  // tiles of 16 rows of this block
  Place ahead_;
};

template <class Weights, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    linear_rows(FewArgs<typename Weights::T> const args) {
  extern __shared__ __align__(128) char shared[];
  RowTiles<Weights, Shape>(args, shared_address(shared)).run();
}

}  // namespace graphopt::vq
