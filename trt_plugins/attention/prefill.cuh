// Attention of many query rows over a cache of 16-bit elements: products on tensor cores are all the work.
//
// FlashAttention-2 (Dao, 2023, algorithm 1) with mma.sync, which every GPU since compute capability 8.0 has: a block takes
// kRows new tokens of one query head, its warps kWarpRows each, and walks over the tiles of cached tokens that the last of
// them sees. Keys and values of the next tile travel through cp.async while this one is multiplied.
#pragma once

#include <cstdint>

#include "attention/args.cuh"
#include "attention/mma.cuh"
#include "attention/policy.h"
#include "attention/softmax.cuh"
#include "common/ptx.cuh"

namespace graphopt::attention {

template <class T_, int kD_>
struct PrefillTraits {
  using T = T_;
  static constexpr int kD = kD_;
  using Shape = PrefillShape<kD>;
  using Rows = StagedRows<kD>;
  static constexpr int kSteps = kD / 16;                    // mma along D
  static constexpr int kBlocksM = Shape::kWarpRows / 16;    // mma rows of a warp
  static constexpr int kBlocksN = Shape::kTileTokens / 8;   // mma columns of a tile's scores
  static constexpr int kQueryBytes = Shape::kRows * Rows::kPitch;
  static constexpr int kTileBytes = Shape::kTileTokens * Rows::kPitch;  // of K or of V
  static_assert(Shape::kSharedBytes == kQueryBytes + 4 * kTileBytes, "policy.h and the kernel disagree");
};

template <class Traits>
class PrefillKernel {
  using T = typename Traits::T;
  using Shape = typename Traits::Shape;
  using Rows = typename Traits::Rows;
  static constexpr int kD = Traits::kD;
  static constexpr int kSteps = Traits::kSteps;
  static constexpr int kBlocksM = Traits::kBlocksM;
  static constexpr int kBlocksN = Traits::kBlocksN;

 public:
  __device__ __forceinline__ PrefillKernel(AttentionArgs<T> const& args, char* shared)
      : args_(args),
        shared_(shared),
        base_(shared_address(shared)),
        lane_(static_cast<int>(threadIdx.x) % 32),
        warp_(static_cast<int>(threadIdx.x) / 32),
        b_(static_cast<int32_t>(blockIdx.z)),
        head_(static_cast<int32_t>(blockIdx.y)),
        // The last new tokens see the most, so they go first.
        first_(static_cast<int32_t>(gridDim.x - 1 - blockIdx.x) * Shape::kRows),
        past_(past_rows(args_.start, b_, args_.capacity)) {}

  __device__ __forceinline__ void run() {
    int32_t const last = min(first_ + Shape::kRows, args_.seq) - 1;
    visible_ = visible_rows(past_, last, args_.capacity);
    cache_ = (int64_t{b_} * args_.kv_heads + head_ / args_.group) * args_.capacity;
    int32_t const tiles = (visible_ + Shape::kTileTokens - 1) / Shape::kTileTokens;

    wait_for_predecessor();
    fetch<Shape::kRows>(base_, args_.q + token_offset(first_), args_.heads * args_.head_size, args_.seq - first_);
    fetch_tile(0);
    for (int32_t tile = 0; tile < tiles; ++tile) {
      cp_async_wait<0>();
      __syncthreads();  // everyone's copies have landed, and everyone has left the stage to be refilled
      if (tile + 1 < tiles) fetch_tile(tile + 1);
      attend(tile);
    }
    write();
  }

 private:
  /// Where new token i of this head is in q and y.
  __device__ __forceinline__ int64_t token_offset(int32_t i) const {
    return ((int64_t{b_} * args_.seq + i) * args_.heads + head_) * args_.head_size;
  }

  /// Copy kCount rows of D elements that are `pitch` elements apart, of which `rows` exist.
  template <int kCount>
  __device__ __forceinline__ void fetch(uint32_t shared, T const* source, int32_t pitch, int32_t rows) const {
    static_assert(kCount * Rows::kChunks % Shape::kThreads == 0, "every thread copies alike");
#pragma unroll 2
    for (int i = 0; i < kCount * Rows::kChunks / Shape::kThreads; ++i) {
      int const item = i * Shape::kThreads + static_cast<int>(threadIdx.x);
      int const row = item / Rows::kChunks, chunk = item % Rows::kChunks;
      bool const valid = row < rows && chunk * 8 < args_.head_size;
      cp_async_16(shared + Rows::offset(row, chunk), source + (valid ? row * pitch + chunk * 8 : 0), valid);
    }
  }

  __device__ __forceinline__ uint32_t stage(int32_t tile) const {
    return base_ + static_cast<uint32_t>(Traits::kQueryBytes + tile % 2 * (2 * Traits::kTileBytes));
  }

  __device__ __forceinline__ void fetch_tile(int32_t tile) const {
    int32_t const token = tile * Shape::kTileTokens, rows = visible_ - token;
    uint32_t const keys = stage(tile), values = keys + Traits::kTileBytes;
    int64_t const first = (cache_ + token) * args_.head_size;
    fetch<Shape::kTileTokens>(keys, static_cast<T const*>(args_.k) + first, args_.head_size, rows);
    fetch<Shape::kTileTokens>(values, static_cast<T const*>(args_.v) + first, args_.head_size, rows);
    cp_async_commit();
  }

  /// Scores, weights and their product with the values, for one tile.
  __device__ __forceinline__ void attend(int32_t tile) {
    float s[kBlocksM][kBlocksN][4] = {};
    uint32_t const keys = stage(tile), values = keys + Traits::kTileBytes;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t q[kBlocksM][4];
#pragma unroll
      for (int i = 0; i < kBlocksM; ++i) {
        int const row = warp_ * Shape::kWarpRows + i * 16 + (lane_ & 15);
        ldmatrix_x4(q[i], base_ + Rows::offset(row, step * 2 + (lane_ >> 4)));
      }
#pragma unroll
      for (int j = 0; j < kBlocksN / 2; ++j) {
        uint32_t k[4];
        ldmatrix_x4(k, keys + Rows::offset(j * 16 + (lane_ & 7) + (lane_ >> 4) * 8, step * 2 + (lane_ >> 3 & 1)));
#pragma unroll
        for (int i = 0; i < kBlocksM; ++i) {
          mma_16bit<T>(s[i][2 * j], q[i], k[0], k[1]);
          mma_16bit<T>(s[i][2 * j + 1], q[i], k[2], k[3]);
        }
      }
    }
    uint32_t p[kBlocksM][kBlocksN / 2][4];
#pragma unroll
    for (int i = 0; i < kBlocksM; ++i) weigh(i, s[i], p[i], tile * Shape::kTileTokens);
#pragma unroll
    for (int j = 0; j < kBlocksN / 2; ++j) {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        uint32_t v[4];
        ldmatrix_x4_trans(v, values + Rows::offset(j * 16 + (lane_ & 15), step * 2 + (lane_ >> 4)));
#pragma unroll
        for (int i = 0; i < kBlocksM; ++i) {
          mma_16bit<T>(o_[i][2 * step], p[i][j], v[0], v[1]);
          mma_16bit<T>(o_[i][2 * step + 1], p[i][j], v[2], v[3]);
        }
      }
    }
  }

  /// Scores of 16 query rows to weights in the layout of an mma's A.
  __device__ __forceinline__ void weigh(int i, float (&s)[kBlocksN][4], uint32_t (&p)[kBlocksN / 2][4],
                                        int32_t token) {
    if (token + Shape::kTileTokens > visible_rows(past_, first_, args_.capacity)) {
      int32_t const row = first_ + warp_ * Shape::kWarpRows + i * 16 + lane_ / 4;
      mask_scores(s, {visible_rows(past_, row, args_.capacity) - token,
                      visible_rows(past_, row + 8, args_.capacity) - token});
    }
    float rescale[2];
    if (softmax_[i].weigh(s, args_.scale_log2, rescale)) scale_rows(o_[i], rescale);
    round_weights<T>(s, p);
  }

  /// Write the warp's rows through the memory of its queries, which nobody else reads.
  __device__ __forceinline__ void write() {
#pragma unroll
    for (int i = 0; i < kBlocksM; ++i) {
      int32_t const row = warp_ * Shape::kWarpRows + i * 16, token = first_ + row;
      softmax_[i].template write<Rows>(o_[i], shared_ + row * Rows::kPitch, args_.y + token_offset(token),
                                       int64_t{args_.heads} * args_.head_size, args_.seq - token, args_.head_size);
    }
  }

  AttentionArgs<T> const& args_;
  char* shared_;
  uint32_t base_;  // shared_ in the shared address space
  int lane_, warp_;
  int32_t b_, head_;
  int32_t first_;  // the block's first new token
  int32_t past_;
  int32_t visible_;  // cached tokens that its last new token sees
  int64_t cache_;  // number of this head's first row in K and V
  float o_[kBlocksM][2 * kSteps][4] = {};
  OnlineSoftmax softmax_[kBlocksM];
};

template <class Traits>
__global__ void __launch_bounds__(Traits::Shape::kThreads)
    attention_prefill(AttentionArgs<typename Traits::T> const args) {
  extern __shared__ __align__(128) char shared[];
  PrefillKernel<Traits>(args, shared).run();
}

}  // namespace graphopt::attention
