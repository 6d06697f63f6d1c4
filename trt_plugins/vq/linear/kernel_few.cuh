// Kernel for few tokens, where reading codes, or looking them up, is the work.
//
// Y^T = W X^T: the 16 rows of an mma are rows of W and its 8 columns tokens. A dot product does not care about the
// order of K: lane (g = lane / 4, t = lane % 4) decodes consecutive columns of rows g and g + 8, and every four of them
// feed one mma as columns 2t, 2t + 1, 2t + 8 and 2t + 9. X is put into shared memory in the order in which lanes read
// it.
//
// A block takes 16 kRowWarps rows and a part of K, which kGroups groups of its warps share chunk by chunk; the blocks
// of a cluster split K, and all sums are added in one fixed order. Weights, which no kernel before this one writes, are
// looked at before that one has ended; X is not.
#pragma once

#include <cstdint>

#include "common/ptx.cuh"
#include "common/vec.cuh"
#include "vq/linear/book.cuh"

namespace graphopt::vq {

/// LinearParams with the element type known.
template <class T>
struct FewArgs {
  T const* __restrict__ x;               // [M, K]
  int8_t const* __restrict__ codes;      // [N, row_bytes]
  __half const* __restrict__ codebooks;  // null: the lattice
  float const* __restrict__ ratios;
  float const* __restrict__ scale;  // [N]
  T const* __restrict__ bias;       // [N]
  T* __restrict__ y;                // [M, N]
  int32_t m;
  int32_t n;
  int32_t k;
  int32_t row_bytes;
  int32_t tile_rows;     // at least N where codebooks do not change
  int32_t tile_columns;  // a multiple of a chunk where they do
  int32_t tiles_across;  // tiles along K
  int32_t chunks;        // along K
  int32_t panel;         // steps of X in shared memory at a time
};

template <class T>
__device__ __forceinline__ void mma(float (&c)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, __half>) {
    mma_f16(c, a, b0, b1);
  } else {
    mma_bf16(c, a, b0, b1);
  }
}

__device__ __forceinline__ void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

/// Load from the same place of block `rank` of the cluster.
__device__ __forceinline__ float load_from_block(uint32_t shared, int rank) {
  float value = 0.0f;
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %1, %2;\nld.shared::cluster.f32 %0, [remote];\n}\n"
      : "=f"(value)
      : "r"(shared), "r"(rank)
      : "memory");
#endif
  return value;
}

/// Codes of a chunk: of rows g and g + 8 of 16.
template <class Codes>
struct ChunkCodes {
  Codes upper, lower;
};

/// sums += 16 rows of a chunk times X, which lies at `x` in the order that lanes read it; `x` is this lane's place.
template <class Weights, int kTokenTiles>
__device__ __forceinline__ void multiply_chunk(float (&sums)[kTokenTiles][4],
                                               ChunkCodes<typename Weights::Codes> const& codes,
                                               typename Weights::Decoder const& decoder, uint32_t x, int tokens) {
  int const token = static_cast<int>(threadIdx.x) % 32 / 4;
  uint32_t places[kTokenTiles];  // tokens that do not exist are read as the first one: their sums are not stored
#pragma unroll
  for (int j = 0; j < kTokenTiles; ++j) places[j] = x + (8 * j + token < tokens ? 8 * j : -token) * 64;
#pragma unroll
  for (int q = 0; q < Weights::Codes::kColumns / 8; ++q) {
    uint32_t upper[4], lower[4];
    decoder.eight(upper, codes.upper, q);
    decoder.eight(lower, codes.lower, q);
    uint32_t const first[4] = {upper[0], lower[0], upper[1], lower[1]};
    uint32_t const second[4] = {upper[2], lower[2], upper[3], lower[3]};
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) {
      uint32_t b[4];
      load_shared(b, places[j] + q * tokens * 64);
      mma<typename Weights::T>(sums[j], first, b[0], b[1]);
      mma<typename Weights::T>(sums[j], second, b[2], b[3]);
    }
  }
}

/// Start copying `count` columns of `tokens` rows of X from `x`: vectors of 8, lane t of token g at place 4 g + t of
/// its eight columns. Columns from `limit` on are zeros.
template <class Codes, int kThreads, class T>
__device__ __forceinline__ void fetch_columns(uint32_t shared, T const* x, int64_t pitch, int tokens, int count,
                                              int limit) {
  constexpr int kEights = Codes::kColumns / 8;
  for (int token = 0; token < tokens; ++token, x += pitch) {
    for (int vector = static_cast<int>(threadIdx.x); vector < count / 8; vector += kThreads) {
      int const chunk = vector / (4 * kEights), t = vector / kEights % 4, q = vector % kEights;
      bool const valid = 8 * vector < limit;
      cp_async_16(shared + (((chunk * kEights + q) * tokens + token) * 4 + t) * 16, x + (valid ? 8 * vector : 0),
                  valid);
    }
  }
  cp_async_commit();
}

/// What row n's sums are multiplied by, and its bias.
template <class T>
__device__ __forceinline__ void load_epilogue(FewArgs<T> const& args, int n, float& factor, float& bias) {
  n = min(n, args.n - 1);
  factor = __ldg(args.scale + n);
  if (args.codebooks == nullptr) factor *= __ldg(args.ratios);
  bias = to_float(__ldg(args.bias + n));
}

/// Warps of a block, and tokens.
///   kRowWarps: of 16 rows each. kGroups: of warps that share K. kTokenTiles: of 8 tokens.
///   kBlocks: that a multiprocessor shall hold.
template <int kRowWarps_, int kGroups_, int kTokenTiles_, int kBlocks_ = 1>
struct FewShape {
  static constexpr int kRowWarps = kRowWarps_;
  static constexpr int kGroups = kGroups_;
  static constexpr int kTokenTiles = kTokenTiles_;
  static constexpr int kBlocks = kBlocks_;
  static constexpr int kRows = 16 * kRowWarps;
  static constexpr int kTokens = 8 * kTokenTiles;
  static constexpr int kThreads = 32 * kRowWarps * kGroups;
};

/// Weights: BookWeights or LatticeWeights.
template <class Weights, class Shape>
class FewTokens {
  using T = typename Weights::T;
  using Codes = typename Weights::Codes;
  static constexpr int kTokens = Shape::kTokens;
  static constexpr int kRows = Shape::kRows;
  static constexpr int kGroups = Shape::kGroups;
  static constexpr int kThreads = Shape::kThreads;
  static constexpr int kDepth = Weights::kTiled || Codes::kWords <= 4 ? 2 : 1;  // chunks of codes on their way
  static constexpr int kEights = Codes::kColumns / 8;
  static constexpr int kTables = Weights::kTiled ? kGroups : 1;  // of a step
  static constexpr int kMostBlocks = 8;                          // of a cluster

 public:
  static constexpr int kChunk = 4 * Codes::kColumns;  // columns of a row that a warp takes at a time
  static constexpr int kStep = kChunk * kGroups;      // columns that the block takes at a time
  static constexpr int kTableBytes = kTables * Weights::kSharedBytes;

  /// Bytes of a panel of X of `tokens` tokens and `steps` steps.
  __host__ __device__ static constexpr int panel_bytes(int tokens, int steps) {
    return tokens * steps * kStep * int{sizeof(T)};
  }

  __device__ __forceinline__ FewTokens(FewArgs<T> const& args, uint32_t shared)
      : args_(args),
        table_(shared),
        panels_(shared + kTableBytes),
        n0_(static_cast<int>(blockIdx.x) / blocks() * kRows),
        m0_(static_cast<int>(blockIdx.y) * kTokens),
        tokens_(min(kTokens, args.m - m0_)),
        lane_(static_cast<int>(threadIdx.x) % 32),
        warp_(static_cast<int>(threadIdx.x) / 32 % Shape::kRowWarps),
        group_(static_cast<int>(threadIdx.x) / 32 / Shape::kRowWarps),
        upper_(args.codes + int64_t{row(0)} * args.row_bytes),
        lower_(args.codes + int64_t{row(8)} * args.row_bytes),
        begin_(static_cast<int>(int64_t{args.chunks} * rank() / blocks())),
        end_(static_cast<int>(int64_t{args.chunks} * (rank() + 1) / blocks())) {}

  __device__ __forceinline__ void run() {
    float sums[Shape::kTokenTiles][4] = {};
    multiply(sums);
    reduce(sums);
  }

 private:
  using Step = ChunkCodes<Codes>;

  __device__ __forceinline__ static int blocks() {  // of the cluster
#if __CUDA_ARCH__ >= 900
    uint32_t count;
    asm("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(count));
    return static_cast<int>(count);
#else
    return 1;
#endif
  }

  __device__ __forceinline__ static int rank() { return static_cast<int>(blockIdx.x) % blocks(); }

  // Rows outside W are read as its last one: their sums are not stored.
  __device__ __forceinline__ int row(int offset) const {
    return min(n0_ + warp_ * 16 + lane_ / 4 + offset, args_.n - 1);
  }

  __device__ __forceinline__ void load(Step& step, int chunk) const {
    int const first = (chunk * 4 + lane_ % 4) * Codes::kBytes;
    int const limit = chunk < end_ ? args_.row_bytes : 0;
    step.upper.load(upper_, first, limit);
    step.lower.load(lower_, first, limit);
  }

  __device__ __forceinline__ uint32_t panel_at(int number) const {
    return panels_ + number % 2 * panel_bytes(tokens_, args_.panel);
  }

  /// Tables of a step; where codebooks change along K there are two buffers, and a table for each group of warps.
  __device__ __forceinline__ uint32_t tables_at(int step) const {
    return table_ + (Weights::kTiled ? step % 2 * (kTables * Weights::kTableBytes) : 0);
  }

  /// Codebooks of the tile of the block's rows and of `chunk`.
  __device__ __forceinline__ __half const* books(int chunk) const {
    if constexpr (Weights::kTiled) {
      int64_t const tile = int64_t{n0_ / args_.tile_rows} * args_.tiles_across + chunk * kChunk / args_.tile_columns;
      return args_.codebooks + tile * (Weights::kEntries * Weights::kEntryBytes / 2);
    } else {
      return args_.codebooks;
    }
  }

  /// Start copying panel `number` of X.
  __device__ __forceinline__ void fetch_panel(int number) const {
    int const first = begin_ * kChunk + number * args_.panel * kStep;
    int const count = min(args_.panel * kStep, end_ * kChunk - first);
    fetch_columns<Codes, kThreads>(panel_at(number), args_.x + int64_t{m0_} * args_.k + first, args_.k, tokens_, count,
                                   args_.k - first);
  }

  /// Brings codebooks: those of all groups of warps where they change along K.
  class Books {
    using Loader = typename Weights::template Loader<kThreads / kTables>;

   public:
    __device__ __forceinline__ explicit Books(FewTokens const& few)
        : few_(few),
          group_(static_cast<int>(threadIdx.x) / (kThreads / kTables)),
          odd_(static_cast<int>(threadIdx.x) % (kThreads / kTables)),
          even_(odd_) {}

    /// Those of the first step; start those of the next two.
    __device__ __forceinline__ void begin() {
      odd_.copy(few_.books(chunk(0)), place(0));
      if constexpr (Weights::kTiled) {
        odd_.load(few_.books(chunk(1)));
        even_.load(few_.books(chunk(2)));
      }
    }

    /// Put those of `step` in place, and start those of the second one after it. `parity`: of step - 1.
    __device__ __forceinline__ void advance(int step, int parity) {
      static_assert(kDepth == 2);
      Loader& loader = parity == 0 ? odd_ : even_;
      loader.store(place(step));
      loader.load(few_.books(chunk(step + 2)));
    }

   private:
    /// The chunk of a step that this thread brings codebooks for; past the end, some other.
    __device__ __forceinline__ int chunk(int step) const {
      return max(few_.begin_, min(few_.begin_ + step * kGroups + group_, few_.end_ - 1));
    }
    __device__ __forceinline__ uint32_t place(int step) const {
      return few_.tables_at(step) + (Weights::kTiled ? group_ * Weights::kTableBytes : 0);
    }

    FewTokens const& few_;
    int const group_;
    Loader odd_, even_;  // of odd and of even steps
  };

  __device__ __forceinline__ void multiply(float (&sums)[Shape::kTokenTiles][4]) {
    Step codes[kDepth];
#pragma unroll
    for (int s = 0; s < kDepth; ++s) load(codes[s], begin_ + s * kGroups + group_);
    Books books(*this);
    if (begin_ < end_) books.begin();
    wait_for_predecessor();
    release_successor();
    int const steps = (end_ - begin_ + kGroups - 1) / kGroups;
    if (steps > 0) fetch_panel(0);
    int left = 0, panel = -1;  // steps until the next panel of X
    uint32_t x = 0;
#pragma unroll 1
    for (int first = 0; first < steps; first += kDepth) {
      // Every chunk in flight has registers of its own: to move one would be to wait for it.
#pragma unroll
      for (int d = 0; d < kDepth; ++d) {
        int const step = first + d;
        if (step >= steps) break;
        if (left == 0) cp_async_wait<0>();
        if (Weights::kTiled || left == 0)
          __syncthreads();  // panel and tables are there; everyone has left those before
        if (left == 0) {
          x = panel_at(++panel) + group_ * kEights * tokens_ * 64 + lane_ * 16;
          left = args_.panel;
          if (step + left < steps) fetch_panel(panel + 1);
        }
        int const chunk = begin_ + step * kGroups + group_;
        Step const now = codes[d];
        load(codes[d], chunk + kDepth * kGroups);
        if (chunk < end_) {
          uint32_t const table = tables_at(step) + (Weights::kTiled ? group_ * Weights::kTableBytes : 0);
          multiply_chunk<Weights>(sums, now, typename Weights::Decoder(table, lane_, args_.ratios), x, tokens_);
        }
        x += kGroups * kEights * tokens_ * 64;
        --left;
        if constexpr (Weights::kTiled) {
          if (step + 1 < steps) books.advance(step + 1, d);
        }
      }
    }
  }

  __device__ __forceinline__ uint32_t sum_at(int group, int token, int row) const {
    return table_ + ((group * tokens_ + token) * kRows + row) * 4;
  }

  /// Add the sums of all groups and of the cluster's blocks; each block stores its share of the rows.
  __device__ __forceinline__ void reduce(float const (&sums)[Shape::kTokenTiles][4]) const {
    int const count = blocks(), share = kRows / count, first = rank() * share;
    int i = static_cast<int>(threadIdx.x);
    float factor = 0.0f, bias = 0.0f;
    load_epilogue(args_, n0_ + first + i % share, factor, bias);
    __syncthreads();  // tables and panels become sums
#pragma unroll
    for (int j = 0; j < Shape::kTokenTiles; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        int const token = 8 * j + lane_ % 4 * 2 + e % 2, at = warp_ * 16 + lane_ / 4 + e / 2 * 8;
        if (token < tokens_) {
          asm volatile("st.shared.f32 [%0], %1;" ::"r"(sum_at(group_, token, at)), "f"(sums[j][e]) : "memory");
        }
      }
    }
    if (count > 1) {
      cluster_barrier();
    } else {
      __syncthreads();
    }
    for (; i < share * tokens_; i += kThreads) {
      int const token = i / share, at = first + i % share, n = n0_ + at;
      if (i >= kThreads) load_epilogue(args_, n, factor, bias);
      float const sum = total(token, at, count);
      if (n < args_.n) args_.y[int64_t{m0_ + token} * args_.n + n] = from_float<T>(fmaf(sum, factor, bias));
    }
    if (count > 1) cluster_barrier();  // nobody leaves while its sums are read
  }

  __device__ __forceinline__ float total(int token, int at, int count) const {
    float sum = 0.0f;
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      uint32_t const place = sum_at(group, token, at);
      if (count == 1) {
        float part;
        asm volatile("ld.shared.f32 %0, [%1];" : "=f"(part) : "r"(place) : "memory");
        sum += part;
        continue;
      }
      float parts[kMostBlocks];  // all on their way at once
#pragma unroll
      for (int block = 0; block < kMostBlocks; ++block)
        parts[block] = block < count ? load_from_block(place, block) : 0.0f;
#pragma unroll
      for (int block = 0; block < kMostBlocks; ++block) sum += parts[block];
    }
    return sum;
  }

  FewArgs<T> const& args_;
  uint32_t const table_;   // of codebooks
  uint32_t const panels_;  // of X
  int const n0_, m0_, tokens_, lane_, warp_, group_;
  int8_t const* const upper_;  // rows of codes
  int8_t const* const lower_;
  int const begin_, end_;  // chunks of this block
};

template <class Weights, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks) linear_few(FewArgs<typename Weights::T> const args) {
  extern __shared__ __align__(128) char shared[];
  FewTokens<Weights, Shape>(args, shared_address(shared)).run();
}

}  // namespace graphopt::vq
