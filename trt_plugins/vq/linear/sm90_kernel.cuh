// VQ-LLM linear on Hopper for many tokens: wgmma, X by the copy engine, W decoded right into wgmma's registers.
//
// Y^T = W X^T: wgmma takes its A operand from registers, so the rows of its product are rows of W and its columns
// tokens. A lane holds two columns of every eight: it looks up that word of an entry, and the lanes that share an entry
// read it together, without a shuffle and without a tile of decoded weights in shared memory.
//
// One persistent block per multiprocessor, three warpgroups: one warp of the first brings X, three bring the codebooks
// of the next tile where these change along K; the others multiply 64 rows of W each. Half of a stage is decoded while
// the products of the other half run.
#pragma once

#include <cstdint>

#include "common/sm90_convert.cuh"
#include "common/sm90_grid.h"
#include "common/sm90_ring.cuh"
#include "common/sm90_store.cuh"
#include "common/sm90_walk.cuh"
#include "common/wgmma.cuh"
#include "vq/linear/lattice.cuh"
#include "vq/linear/sm90_tile.h"

namespace graphopt::vq {

/// Operands of the kernel; lives in constant memory, where the copy engine wants its tensor maps.
template <class T>
struct Sm90Args {
  CUtensorMap x;            // [M, K] T
  CUtensorMap y;            // [M, N] T
  int8_t const* codes;      // [N, row_bytes]
  __half const* codebooks;  // null: the lattice
  float const* ratios;
  float const* scale;  // [N]
  T const* bias;       // [N]
  int32_t m;
  int32_t n;
  int32_t x_rows;  // brought into a stage; the rest of a stage belongs to tokens that are not stored
  int32_t stages;  // along K
  int32_t row_bytes;
  int32_t tile_rows;     // at least N where codebooks do not change
  int32_t tile_stages;   // stages that share codebooks; at least `stages` where all do
  int32_t tiles_across;  // tiles along K
  Sm90Grid grid;  // down: tiles of tokens; across: tiles of rows of W
};

/// Offsets into the block's shared memory.
template <class Traits>
struct Sm90Shared {
  using Stages = Ring<Traits::kStages, Traits::kStageBytes, 0>;

  uint32_t base;

  __device__ __forceinline__ Stages stages() const { return {base, base + Traits::kBarrierOffset}; }
  __device__ __forceinline__ uint32_t staging(int warpgroup, int buffer) const {
    return base + Traits::kStagingOffset + (2 * warpgroup + buffer) * Traits::kStoreBytes;
  }
  __device__ __forceinline__ uint32_t table(int buffer) const {
    return base + Traits::kTableOffset + buffer * Traits::Weights::kTableBytes;
  }
  __device__ __forceinline__ uint32_t table_full(int buffer) const {
    return stages().full(2 * Traits::kStages + buffer);
  }
  __device__ __forceinline__ uint32_t table_empty(int buffer) const { return table_full(2 + buffer); }
};

/// One thread: fill the ring for every tile of Y.
template <class Traits>
__device__ __forceinline__ void produce_x(Sm90Args<typename Traits::T> const& args, Sm90Shared<Traits> const& shared) {
  auto const stages = shared.stages();
  typename Sm90Shared<Traits>::Stages::Position at;
  TileWalk<Traits::kTokens, kSm90Rows> walk(args.grid);
  int token, row;
  while (walk.next(token, row)) {
    for (int i = 0; i < args.stages; ++i) {
      stages.acquire(at, args.x_rows * Traits::kRowBytes);
      tma_load(stages.x(at.stage), &args.x, stages.full(at.stage), i * Traits::kColumns, token);
      at.advance();
    }
  }
}

/// Where the codebooks of a tile of Y begin, and the next ones along K.
template <class Traits>
__device__ __forceinline__ __half const* books_of(Sm90Args<typename Traits::T> const& args, int row, int tile) {
  using Weights = typename Traits::Weights;
  return args.codebooks +
         (int64_t{row / args.tile_rows} * args.tiles_across + tile) * (Weights::kEntries * Weights::kEntryBytes / 2);
}

/// kLoaderThreads threads: bring the codebooks of every tile of W that the block meets, two of them at a time.
template <class Traits>
__device__ __forceinline__ void produce_books(Sm90Args<typename Traits::T> const& args,
                                              Sm90Shared<Traits> const& shared) {
  using Weights = typename Traits::Weights;
  typename Weights::template Loader<Traits::kLoaderThreads> loader(static_cast<int>(threadIdx.x) - 32);
  RingPosition<2> at;
  TileWalk<Traits::kTokens, kSm90Rows> walk(args.grid);
  int token, row;
  while (walk.next(token, row)) {
    for (int tile = 0; tile * args.tile_stages < args.stages; ++tile) {
      loader.load(books_of<Traits>(args, row, tile));
      mbarrier_wait(shared.table_empty(at.stage), at.parity ^ 1);
      loader.store(shared.table(at.stage));
      mbarrier_arrive(shared.table_full(at.stage));
      at.advance();
    }
  }
}

/// One warpgroup that multiplies: 64 rows of W of every tile of Y.
template <class Traits>
class Sm90Consumer {
  using T = typename Traits::T;
  using Weights = typename Traits::Weights;
  using Product = Wgmma<Traits::kTokens>;
  using Decoder = typename Weights::template PairDecoder<Traits::kWords>;
  using Words = uint32_t[Traits::kWords];
  static constexpr int kHalfSteps = Traits::kSteps / 2;

 public:
  __device__ __forceinline__ Sm90Consumer(Sm90Args<T> const& args, Sm90Shared<Traits> const& shared, int warpgroup)
      : args_(args), shared_(shared), stages_(shared.stages()), warpgroup_(warpgroup) {}

  __device__ __forceinline__ void run() {
    TileWalk<Traits::kTokens, kSm90Rows> walk(args_.grid);
    int token, row;
    while (walk.next(token, row)) {
      row += warpgroup_ * kWgmmaRows;
      start_row(row);
      multiply();
      store(token, row);
    }
    if (is_leader()) bulk_wait_read<0>();
  }

 private:
  /// Registers of A for half a stage.
  using Half = uint32_t[4 * kHalfSteps];

  __device__ __forceinline__ bool is_leader() const { return threadIdx.x % kWarpgroup == 0; }

  /// Factors and biases of this lane's rows, and where their codes lie. Rows outside W are read as its last one.
  __device__ __forceinline__ void start_row(int row) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      int const at = min(row + warp_ * 16 + lane_ / 4 + 8 * h, args_.n - 1);
      codes_[h] = args_.codes + int64_t{at} * args_.row_bytes;
      factor_[h] = __ldg(args_.scale + at);
      if (args_.codebooks == nullptr) factor_[h] *= __ldg(args_.ratios);
      bias_[h] = to_float(__ldg(args_.bias + at));
    }
  }

  __device__ __forceinline__ void load(Words (&words)[2], int stage) const {
    int const limit = stage < args_.stages ? args_.row_bytes : 0;
#pragma unroll
    for (int h = 0; h < 2; ++h) load_codes(words[h], codes_[h], stage * (4 * Traits::kWords), limit);
  }

  /// sums = W X^T. Halves of a stage take turns with two sets of registers, codes of two stages are on their way.
  __device__ __forceinline__ void multiply() {
    Half first, second;
    Words even[2], odd[2];
    load(even, 0);
    load(odd, 1);
    previous_ = -1;
    left_ = 0;
    wgmma_pin(sum_);
#pragma unroll 1
    for (int i = 0; i < args_.stages; i += 2) {
      multiply_stage(i, even, first, second);
      if (i + 1 < args_.stages) multiply_stage(i + 1, odd, first, second);
    }
    wgmma_wait<0>();
    wgmma_pin(sum_);
    release(stages_.empty(previous_));
  }

  /// One stage, of `codes`, into which those of the second one after it are started.
  __device__ __forceinline__ void multiply_stage(int i, Words (&codes)[2], Half& first, Half& second) {
    Words words[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int w = 0; w < Traits::kWords; ++w) words[h][w] = codes[h][w];
    }
    load(codes, i + 2);
    if constexpr (Weights::kTiled) {
      if (left_ == 0) {
        mbarrier_wait(shared_.table_full(book_.stage), book_.parity);
        left_ = args_.tile_stages;
      }
    }
    Decoder const decoder(shared_.table(Weights::kTiled ? book_.stage : 0), lane_, args_.ratios);
    decoder.align(words[0]);
    decoder.align(words[1]);
    decode<0>(first, decoder, words);
    mbarrier_wait(stages_.full(at_.stage), at_.parity);
    uint64_t const x = wgmma_descriptor<Traits::kRowBytes>(stages_.x(at_.stage));
    start_products(first, x, i > 0);
    if (previous_ >= 0) release(stages_.empty(previous_));
    decode<1>(second, decoder, words);
    if constexpr (Weights::kTiled) {
      if (--left_ == 0 || i + 1 == args_.stages) {
        mbarrier_arrive(shared_.table_empty(book_.stage));
        book_.advance();
        left_ = 0;
      }
    }
    start_products(second, x + kHalfSteps * (kWgmmaStepBytes / 16), true);
    previous_ = at_.stage;
    at_.advance();
  }

  /// A of half a stage.
  template <int kHalf>
  __device__ __forceinline__ void decode(Half& a, Decoder const& decoder, Words const (&words)[2]) const {
#pragma unroll
    for (int s = 0; s < kHalfSteps; ++s) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[4 * s + i] = decoder.pair(words[i % 2], 2 * (kHalf * kHalfSteps + s) + i / 2);
    }
  }

  /// Start the products of half a stage and wait for those of the half before.
  __device__ __forceinline__ void start_products(Half& a, uint64_t x, bool accumulate) {
    wgmma_pin(a);  // decoded before the fence
    wgmma_fence();
#pragma unroll
    for (int s = 0; s < kHalfSteps; ++s) {
      Product::product(sum_, a + 4 * s, x + s * (kWgmmaStepBytes / 16), accumulate || s > 0, T{});
    }
    wgmma_commit();
    wgmma_wait<1>();
  }

  /// Tell the producer that this warp has read what `barrier` guards.
  __device__ __forceinline__ void release(uint32_t barrier) const {
    __syncwarp();
    if (lane_ == 0) mbarrier_arrive(barrier);
  }

  /// y = T(factor sums + bias), kStoreTokens tokens of 64 rows of W at a time, through two buffers of shared memory.
  __device__ __forceinline__ void store(int token, int row) {
    store_tokens<Traits::kTokens, Traits::kStoreTokens>(
        args_.y, args_.m, warpgroup_, is_leader(), buffer_, token, row,
        [&](int turn) { return shared_.staging(warpgroup_, turn); },
        [&](int c, int, uint32_t place) { stage_tokens(c, place); });
  }

  /// Tokens kStoreTokens c.. of 64 rows of W, swizzled as the copy engine expects: chunk of 16 bytes ^ (token % 8).
  __device__ __forceinline__ void stage_tokens(int c, uint32_t buffer) const {
    int const chunk = 2 * warp_ + lane_ / 8 % 2;
#pragma unroll
    for (int q = 0; q < Traits::kStoreTokens / 16; ++q) {
      uint32_t word[4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        uint32_t const* sum = sum_ + 4 * (c * Traits::kStoreTokens / 8 + 2 * q + i);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          word[2 * i + h] = round_pair<T>(fmaf(__uint_as_float(sum[2 * h]), factor_[h], bias_[h]),
                                          fmaf(__uint_as_float(sum[2 * h + 1]), factor_[h], bias_[h]));
        }
      }
      int const token = 16 * q + lane_ / 16 * 8 + lane_ % 8;
      stmatrix_x4_transposed(buffer + token * 128 + ((chunk ^ (lane_ % 8)) * 16), word[0], word[1], word[2], word[3]);
    }
  }

  Sm90Args<T> const& args_;
  Sm90Shared<Traits> const shared_;
  typename Sm90Shared<Traits>::Stages const stages_;
  int const warp_ = static_cast<int>(threadIdx.x) / 32 % 4;
  int const lane_ = static_cast<int>(threadIdx.x) % 32;
  int const warpgroup_;
  RingPosition<Traits::kStages> at_;
  RingPosition<2> book_;
  int buffer_ = 0;
  int previous_ = -1;  // stage whose products may still run
  int left_ = 0;       // stages until the codebooks change
  int8_t const* codes_[2];
  float factor_[2], bias_[2];
  uint32_t sum_[Traits::kSums];
};

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    linear_sm90(__grid_constant__ Sm90Args<typename Traits::T> const args) {
  using Weights = typename Traits::Weights;
  extern __shared__ __align__(1024) uint8_t memory[];
  Sm90Shared<Traits> const shared{shared_address(memory)};
  int const warp = static_cast<int>(threadIdx.x) / 32;

  if (threadIdx.x == 0) {
    prefetch_tensor_map(&args.x);
    prefetch_tensor_map(&args.y);
    shared.stages().init(Traits::kReaderWarps);
    for (int buffer = 0; buffer < 2; ++buffer) {
      mbarrier_init(shared.table_full(buffer), Traits::kLoaderThreads);
      mbarrier_init(shared.table_empty(buffer), 32 * Traits::kReaderWarps);
    }
    mbarrier_init_fence();
  }
  if constexpr (!Weights::kTiled) {
    constexpr int kLoaders = 256;  // a number of threads that divides the work
    if (threadIdx.x < kLoaders) {
      typename Weights::template Loader<kLoaders>(static_cast<int>(threadIdx.x)).copy(args.codebooks, shared.table(0));
    }
  }
  __syncthreads();

  if (warp < kWarpgroup / 32) {
    release_registers<Traits::kProducerRegisters>();
    if (threadIdx.x == 0) produce_x<Traits>(args, shared);
    if constexpr (Weights::kTiled) {
      if (warp > 0) produce_books<Traits>(args, shared);
    }
    __syncwarp();
  } else {
    claim_registers<Traits::kConsumerRegisters>();
    Sm90Consumer<Traits>(args, shared, warp / 4 - 1).run();
  }
}

}  // namespace graphopt::vq
