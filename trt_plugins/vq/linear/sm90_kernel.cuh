// VQ-LLM linear on Hopper for many tokens: wgmma, X by the copy engine, W decoded right into wgmma's registers.
//
// Y^T = W X^T: wgmma takes its A operand from registers, so the rows of its product are rows of W and its columns
// tokens. A lane holds two columns of every eight: it looks up that word of an entry, and the lanes that share an entry
// read it together, without a shuffle and without a tile of decoded weights in shared memory. Or it has whole vectors,
// see sm90_vectors.cuh.
//
// One persistent block per multiprocessor: one warp of the first warpgroup brings X, three bring the codebooks of the
// next tile where these change along K, or put X into the order of vectors; the others multiply 64 rows of W each. Half
// of a stage is decoded while the products of the other half run.
//
// Where tiles are fewer than multiprocessors, two blocks of a cluster share a tile's K, and with few tokens two pairs
// of warpgroups do. Then blocks are not persistent: the ring becomes room for their sums.
#pragma once

#include <cstdint>

#include "common/sm90_convert.cuh"
#include "common/sm90_store.cuh"
#include "common/wgmma.cuh"
#include "vq/linear/lattice.cuh"
#include "vq/linear/sm90_block.cuh"

namespace graphopt::vq {

/// What decodes codes of a stage, kWords words of each row.
template <class Weights, int kWords, bool kVectors = kHasVectors<Weights>>
struct DecoderOf {
  using Type = typename Weights::template PairDecoder<kWords>;
};

template <class Weights, int kWords>
struct DecoderOf<Weights, kWords, true> {
  using Type = typename Weights::VectorDecoder;
};

/// What decoders take of the ratios, to be made before a loop: the lattice's in a register. It is hidden from the
/// compiler, which divides again for every stage rather than keep it.
template <class Weights>
__device__ __forceinline__ auto ratios_of(float const* ratios) {
  if constexpr (Weights::kLattice) {
    uint32_t ratio = Weights::ratio_of(ratios);
    asm volatile("" : "+r"(ratio));
    return ratio;
  } else {
    return ratios;
  }
}

/// One warpgroup that multiplies: 64 rows of W of every tile of Y, and of its K every kGroups-th stage.
template <class Traits>
class Sm90Consumer {
  using T = typename Traits::T;
  using Weights = typename Traits::Weights;
  using Product = Wgmma<Traits::kTokens>;
  using Decoder = typename DecoderOf<Weights, Traits::kWords>::Type;
  using Words = uint32_t[Traits::kLaneWords];
  static constexpr int kHalfSteps = Traits::kSteps / 2;
  static constexpr int kGroups = Traits::kGroups;

 public:
  __device__ __forceinline__ Sm90Consumer(Sm90Args<T> const& args, Sm90Shared<Traits> const& shared, int warpgroup)
      : args_(args),
        shared_(shared),
        stages_(shared.stages()),
        half_(warpgroup % Traits::kHalves),
        group_(kGroups == 1 ? 0 : warpgroup / Traits::kHalves),
        range_(StageRange::of(args)),
        ratios_(ratios_of<Weights>(args.ratios)) {
    for (int i = 0; i < group_; ++i) at_.advance();
  }

  __device__ __forceinline__ void run() {
    SharedWalk<Traits> walk(args_);
    int token, row;
    while (walk.next(token, row)) {
      row += half_ * kWgmmaRows;
      start_row(row);
      multiply();
      bool const whole = kGroups == 1 && args_.split == 1;
      if (whole || gather()) store(token, row);
    }
    if (is_leader()) bulk_wait_read<0>();
    if (args_.split == 1) return;
    __syncwarp();
    cluster_depart();  // nobody leaves while its sums are read
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
      asm volatile("" : "+l"(codes_[h]));  // or the compiler works it out again for every stage
      factor_[h] = __ldg(args_.scale + at);
      if (args_.codebooks == nullptr) factor_[h] *= __ldg(args_.ratios);
      bias_[h] = to_float(__ldg(args_.bias + at));
    }
  }

  __device__ __forceinline__ void load(Words (&words)[2], int stage) const {
    int const limit = stage < range_.end ? args_.row_bytes : 0;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      int const first = Traits::kVectors ? lane_ % 4 * (4 * Traits::kLaneWords) : 0;
      load_codes(words[h], codes_[h], stage * (4 * Traits::kWords) + first, limit);
    }
  }

  /// sums = W X^T. Halves of a stage take turns with two sets of registers, codes of kAhead stages are on their way.
  __device__ __forceinline__ void multiply() {
    Half first, second;
    Words codes[Traits::kAhead][2];
#pragma unroll
    for (int a = 0; a < Traits::kAhead; ++a) load(codes[a], range_.begin + group_ + a * kGroups);
    previous_ = -1;
    left_ = 0;
#pragma unroll
    for (uint32_t& sum : sum_) sum = 0;
    wgmma_pin(sum_);
#pragma unroll 1
    for (int i = range_.begin; i < range_.end; i += Traits::kAhead * kGroups) {
#pragma unroll
      for (int a = 0; a < Traits::kAhead; ++a) {
        if (i + a * kGroups < range_.end) multiply_stage(i + a * kGroups, codes[a], first, second);
      }
    }
    wgmma_wait<0>();
    wgmma_pin(sum_);
    release_previous();
  }

  /// Stage i + group_, of `codes`, into which those of the kAhead-th one after it are started.
  __device__ __forceinline__ void multiply_stage(int i, Words (&codes)[2], Half& first, Half& second) {
    Words words[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int w = 0; w < Traits::kLaneWords; ++w) words[h][w] = codes[h][w];
    }
    load(codes, i + group_ + Traits::kAhead * kGroups);
    acquire_books();
    if (kGroups > 1 && i + group_ >= range_.end) return release_books(i);
    Decoder const decoder(shared_.table(Weights::kTiled ? book_.stage : 0), lane_, ratios_);
    if constexpr (!Traits::kVectors) {
      decoder.align(words[0]);
      decoder.align(words[1]);
    }
    decode<0>(first, decoder, words);
    mbarrier_wait(shared_.ready(at_.stage), at_.parity);
    uint64_t const x = wgmma_descriptor<Traits::kRowBytes>(stages_.x(at_.stage));
    start_products(first, x);
    release_previous();
    decode<1>(second, decoder, words);
    release_books(i);
    start_products(second, x + kHalfSteps * (kWgmmaStepBytes / 16));
    previous_ = at_.stage;
#pragma unroll
    for (int group = 0; group < kGroups; ++group) at_.advance();
  }

  /// Wait for the codebooks of the stages from here on, where they change.
  __device__ __forceinline__ void acquire_books() {
    if constexpr (Weights::kTiled) {
      if (left_ > 0) return;
      mbarrier_wait(shared_.table_full(book_.stage), book_.parity);
      left_ = args_.tile_stages;
    }
  }

  /// Tell, by every thread, that stages i to i + kGroups - 1 are decoded. Codebooks change at a multiple of those.
  __device__ __forceinline__ void release_books(int i) {
    if constexpr (Weights::kTiled) {
      left_ -= kGroups;
      if (left_ > 0 && i + kGroups < range_.end) return;
      mbarrier_arrive(shared_.table_empty(book_.stage));
      book_.advance();
      left_ = 0;
    }
  }

  /// A of half a stage.
  template <int kHalf>
  __device__ __forceinline__ void decode(Half& a, Decoder const& decoder, Words const (&words)[2]) const {
    if constexpr (Traits::kVectors) {
      static_assert(kHalfSteps == 2 && Traits::kLaneWords == 2, "a vector of each row is half a stage");
      decoder.half(a, words[0][kHalf], words[1][kHalf]);
    } else {
#pragma unroll
      for (int s = 0; s < kHalfSteps; ++s) {
#pragma unroll
        for (int i = 0; i < 4; ++i) a[4 * s + i] = decoder.pair(words[i % 2], 2 * (kHalf * kHalfSteps + s) + i / 2);
      }
    }
  }

  /// Start the products of half a stage and wait for those of the half before. To wait for those before that instead,
  /// with twice the registers, takes 10 to 27 % more time.
  __device__ __forceinline__ void start_products(Half& a, uint64_t x) {
    wgmma_pin(a);  // decoded before the fence
    wgmma_fence();
#pragma unroll
    for (int s = 0; s < kHalfSteps; ++s) {
      Product::product(sum_, a + 4 * s, x + s * (kWgmmaStepBytes / 16), true, T{});
    }
    wgmma_commit();
    wgmma_wait<1>();
  }

  /// Tell the producer that this warp has read the stage before.
  __device__ __forceinline__ void release_previous() const {
    if (previous_ < 0) return;
    __syncwarp();
    if (lane_ == 0) mbarrier_arrive(stages_.empty(previous_));
  }

  /// Add the sums of all warpgroups that share the tile's K, in one order. Returns whether this one has the result: of
  /// two blocks, the first has that of the first 64 rows, the second that of the others.
  __device__ __forceinline__ bool gather() {
    int const rank = static_cast<int>(blockIdx.x) % args_.split;
    bool const mine = group_ == 0 && (args_.split == 1 || half_ == rank);
    uint32_t const place = static_cast<uint32_t>(threadIdx.x) % kWarpgroup * 16;
    consumers_sync();  // everyone has left the ring
    if (!mine) {
#pragma unroll
      for (int i = 0; i < Traits::kSums; i += 4) {
        store_shared(shared_.sums(group_, half_) + place + i * (4 * kWarpgroup), sum_[i], sum_[i + 1], sum_[i + 2],
                     sum_[i + 3]);
      }
    }
    if (args_.split > 1) {
      cluster_sync();
    } else {
      consumers_sync();
    }
    if (!mine) return false;
    for (int block = 0; block < args_.split; ++block) {
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        if (group == 0 && block == rank) continue;
        add(address_at(shared_.sums(group, half_) + place, block));
      }
    }
    return true;
  }

  __device__ __forceinline__ void add(uint32_t place) {
#pragma unroll
    for (int i = 0; i < Traits::kSums; i += 4) {
      float part[4];
      load_at(part, place + i * (4 * kWarpgroup));
#pragma unroll
      for (int e = 0; e < 4; ++e) sum_[i + e] = __float_as_uint(__uint_as_float(sum_[i + e]) + part[e]);
    }
  }

  __device__ __forceinline__ static void consumers_sync() {
    constexpr int kBarrier = 15;  // store uses the first ones
    threads_sync<Traits::kConsumers * kWarpgroup>(kBarrier);
  }

  /// y = T(factor sums + bias), kStoreTokens tokens of 64 rows of W at a time, through two buffers of shared memory.
  __device__ __forceinline__ void store(int token, int row) {
    store_tokens<Traits::kTokens, Traits::kStoreTokens>(
        args_.y, args_.m, half_, is_leader(), buffer_, token, row,
        [&](int turn) { return shared_.staging(half_, turn); },
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
  int const half_, group_;
  StageRange const range_;
  RingPosition<Traits::kStages> at_;
  RingPosition<2> book_;
  int buffer_ = 0;
  int previous_ = -1;  // stage whose products may still run
  int left_ = 0;       // stages until the codebooks change
  int8_t const* codes_[2];
  float factor_[2], bias_[2];
  decltype(ratios_of<Weights>(nullptr)) const ratios_;
  uint32_t sum_[Traits::kSums];
};

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    linear_sm90(__grid_constant__ Sm90Args<typename Traits::T> const args) {
  using Weights = typename Traits::Weights;
  extern __shared__ __align__(1024) uint8_t memory[];
  Sm90Shared<Traits> const shared(shared_address(memory));
  int const warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);  // known to be the warp's

  if (threadIdx.x == 0) {
    prefetch_tensor_map(&args.x);
    prefetch_tensor_map(&args.y);
    shared.stages().init(Traits::kReaderWarps);
    for (int buffer = 0; buffer < 2; ++buffer) {
      mbarrier_init(shared.table_full(buffer), Traits::kLoaderThreads);
      mbarrier_init(shared.table_empty(buffer), Traits::kConsumers * kWarpgroup);
    }
    if constexpr (Traits::kVectors) {
      for (int stage = 0; stage < Traits::kStages; ++stage) {
        mbarrier_init(shared.ordered(stage), 1);
      }
    }
    mbarrier_init_fence();
  }
  if constexpr (!Weights::kTiled) {
    constexpr int kLoaders = Traits::kThreads / 256 * 256;  // a number of threads that divides the work
    if (threadIdx.x < kLoaders) {
      typename Weights::template Loader<kLoaders>(static_cast<int>(threadIdx.x)).copy(args.codebooks, shared.table(0));
    }
  }
  __syncthreads();

  if (warp < kWarpgroup / 32) {
    release_registers<Traits::kProducerRegisters>();
    if (warp == 0) produce_x<Traits>(args, shared);
    if constexpr (Weights::kTiled) {
      if (warp > 0) produce_books<Traits>(args, shared);
    } else if constexpr (Traits::kVectors) {
      if (warp > 0) order_vectors<Traits>(args, shared);
    }
    __syncwarp();
  } else {
    claim_registers<Traits::kConsumerRegisters>();
    Sm90Consumer<Traits>(args, shared, warp / 4 - 1).run();
  }
}

}  // namespace graphopt::vq
