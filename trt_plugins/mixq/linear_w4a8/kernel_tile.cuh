// Tensor-core kernel for more tokens: cp.async stages, ldmatrix, mma.sync; codes of W become int8 in registers.
//
// The operands are one stream of stages: first those of 64 columns of xq and wq4, then those of 32 bytes of xo and wo.
// ldmatrix hands a lane the word of 8 codes whose low nibbles are the first half of an mma's K and whose high ones are
// the second, so they only need their group's scale.
//
//   stage: A [kRowsM][64 bytes], then B [kRowsN][32 bytes], in 16-byte chunks: chunk c of row r lies at chunk
//   c ^ (r / 2 % 4) of A and c ^ (r / 4 % 2) of B, so that the 8 rows of an ldmatrix touch 8 different groups of banks.
#pragma once

#include "mixq/common/tile_epilogue.cuh"
#include "mixq/linear_w4a8/codes.cuh"
#include "mixq/linear_w4a8/policy.h"

namespace graphopt::mixq {

template <class T, class Tile>
struct W4TileTraits {
  static constexpr int kABytes = 64;  // of a row of A in a stage; outliers fill half of it
  static constexpr int kBBytes = 32;  // of a row of B
  static constexpr int kWarpsM = Tile::kRowsM / Tile::kWarpM;
  static constexpr int kWarpsN = Tile::kRowsN / Tile::kWarpN;
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
  static constexpr int kBOffset = Tile::kRowsM * kABytes;
  static constexpr int kStageBytes = kBOffset + Tile::kRowsN * kBBytes;
  static constexpr int kSharedBytes = kStageBytes * Tile::kStages;
  static constexpr int kBlocksM = Tile::kWarpM / 16;  // mma rows of a warp
  static constexpr int kBlocksN = Tile::kWarpN / 8;   // mma columns of a warp
  using Epilogue = TileEpilogue<T, Tile, LinearW4A8Args<T>>;

  static_assert(kBlocksN % 4 == 0, "ldmatrix x4 reads four mma columns of codes");
  static_assert(Epilogue::kWarpScratch * kWarpsM * kWarpsN <= kSharedBytes, "the epilogue reuses the stages");
  static_assert(kSharedBytes <= 99 * 1024, "what sm_86, sm_89 and sm_120 give a block");
};

__device__ __forceinline__ uint32_t swizzled_a(int row, int chunk) {
  return static_cast<uint32_t>(row * 64 + ((chunk ^ ((row >> 1) & 3)) << 4));
}

__device__ __forceinline__ uint32_t swizzled_b(int row, int chunk) {
  return static_cast<uint32_t>(row * 32 + ((chunk ^ ((row >> 2) & 1)) << 4));
}

template <class T, class Tile>
class TileW4A8 {
  using Traits = W4TileTraits<T, Tile>;

 public:
  __device__ __forceinline__ TileW4A8(LinearW4A8Args<T> const& args, char* shared)
      : args_(args),
        shared_(shared),
        base_(shared_address(shared)),
        m0_(int64_t{blockIdx.x} * Tile::kRowsM),
        n0_(int64_t{blockIdx.y} * Tile::kRowsN),
        lane_(static_cast<int>(threadIdx.x) % 32),
        warp_(static_cast<int>(threadIdx.x) / 32),
        warp_m_(warp_ % Traits::kWarpsM * Tile::kWarpM),
        warp_n_(warp_ / Traits::kWarpsM * Tile::kWarpN),
        code_tiles_((args.k + kColumns - 1) / kColumns),
        outlier_bytes_(args.capacity * static_cast<int>(sizeof(T))),
        tiles_(code_tiles_ + outlier_bytes_ / Traits::kBBytes) {}

  __device__ __forceinline__ void run() {
#pragma unroll
    for (int s = 0; s < Tile::kStages - 1; ++s) fetch(s);
    float values[Traits::kBlocksM][Traits::kBlocksN][4];
    multiply_codes(values);
    for (int tile = code_tiles_; tile < tiles_; ++tile) multiply_outliers(values, tile);
    // The stages become the epilogue's scratch: no copy may be in flight, nor a warp still reading.
    cp_async_wait<0>();
    __syncthreads();
    epilogue().write(values, shared_ + warp_ * Traits::Epilogue::kWarpScratch);
  }

 private:
  static constexpr int kColumns = static_cast<int>(kTileColumns);

  __device__ __forceinline__ uint32_t stage_of(int tile) const {
    return base_ + static_cast<uint32_t>(tile % Tile::kStages * Traits::kStageBytes);
  }

  __device__ __forceinline__ typename Traits::Epilogue epilogue() const {
    return {args_, m0_ + warp_m_, n0_ + warp_n_, lane_};
  }

  /// Start copying tile `tile` into its stage; past the end only an empty group, to keep the count of groups.
  __device__ __forceinline__ void fetch(int tile) {
    uint32_t const stage = stage_of(tile), b = stage + Traits::kBOffset;
    if (tile < code_tiles_) {
      fetch_rows<Tile::kRowsM, 4>(stage, swizzled_a, args_.xq, m0_, args_.m, args_.k, tile * kColumns);
      fetch_rows<Tile::kRowsN, 2>(b, swizzled_b, args_.wq4, n0_, args_.n, args_.row_bytes, tile * kColumns / 2);
    } else if (tile < tiles_) {
      int const column = (tile - code_tiles_) * Traits::kBBytes;
      fetch_rows<Tile::kRowsM, 2>(stage, swizzled_a, args_.xo, m0_, args_.m, outlier_bytes_, column);
      fetch_rows<Tile::kRowsN, 2>(b, swizzled_b, args_.wo, n0_, args_.n, outlier_bytes_, column);
    }
    cp_async_commit();
  }

  /// Copy kChunks vectors of kRows rows, from byte `column` of rows of `pitch` bytes.
  template <int kRows, int kChunks, class Place>
  __device__ __forceinline__ void fetch_rows(uint32_t shared, Place place, void const* source, int64_t first,
                                             int64_t rows, int pitch, int column) const {
    static_assert(kRows * kChunks % Traits::kThreads == 0, "every thread copies alike");
#pragma unroll
    for (int i = 0; i < kRows * kChunks / Traits::kThreads; ++i) {
      int const item = i * Traits::kThreads + static_cast<int>(threadIdx.x);
      int const row = item / kChunks, chunk = item % kChunks;
      int const byte = column + chunk * 16;
      bool const valid = first + row < rows && byte < pitch;
      cp_async_16(shared + place(row, chunk),
                  static_cast<char const*>(source) + (valid ? (first + row) * pitch + byte : 0), valid);
    }
  }

  /// Wait for tile `tile`, and start the fetch of the one that takes over the stage freed last.
  __device__ __forceinline__ uint32_t next_stage(int tile) {
    cp_async_wait<Tile::kStages - 2>();
    __syncthreads();  // everyone's copies of this tile have landed, and everyone has left the stage to be refilled
    fetch(tile + Tile::kStages - 1);
    return stage_of(tile);
  }

  /// values = sx sw (xq wc^T).
  __device__ __forceinline__ void multiply_codes(float (&values)[Traits::kBlocksM][Traits::kBlocksN][4]) {
    int32_t sums[Traits::kBlocksM][Traits::kBlocksN][4] = {};
    uint32_t scales[Traits::kBlocksN];
    load_scales(scales, 0);
#pragma unroll 1
    for (int tile = 0; tile < code_tiles_; ++tile) {
      uint32_t const stage = next_stage(tile);
#pragma unroll
      for (int step = 0; step < kColumns / kStepBytes; ++step) {
        uint32_t a[Traits::kBlocksM][4], codes[Traits::kBlocksN / 4][4];
        load_a(a, stage, step);
#pragma unroll
        for (int j = 0; j < Traits::kBlocksN / 4; ++j) {
          ldmatrix_x4(codes[j], stage + Traits::kBOffset + swizzled_b(warp_n_ + j * 32 + lane_, step));
        }
#pragma unroll
        for (int j = 0; j < Traits::kBlocksN; ++j) {
          GroupScale const scale(scales[j]);
          uint32_t const b0 = scale.low(codes[j / 4][j % 4]), b1 = scale.high(codes[j / 4][j % 4]);
#pragma unroll
          for (int i = 0; i < Traits::kBlocksM; ++i) mma_s8(sums[i][j], a[i], b0, b1);
        }
      }
      load_scales(scales, tile + 1);
    }
    epilogue().scale(sums, values);
  }

  /// Integer scales of this lane's rows of W for the columns of `tile`.
  __device__ __forceinline__ void load_scales(uint32_t (&scales)[Traits::kBlocksN], int tile) const {
    int64_t const group = int64_t{tile * kColumns >> args_.group_shift} * args_.n;
#pragma unroll
    for (int j = 0; j < Traits::kBlocksN; ++j) {
      int64_t const n = n0_ + warp_n_ + j * 8 + lane_ / 4;
      scales[j] = tile < code_tiles_ && n < args_.n ? __ldg(args_.sg + group + n) : 0;
    }
  }

  __device__ __forceinline__ void load_a(uint32_t (&a)[Traits::kBlocksM][4], uint32_t stage, int step) const {
#pragma unroll
    for (int i = 0; i < Traits::kBlocksM; ++i) {
      ldmatrix_x4(a[i], stage + swizzled_a(warp_m_ + i * 16 + lane_ % 16, step * 2 + lane_ / 16));
    }
  }

  __device__ __forceinline__ void multiply_outliers(float (&values)[Traits::kBlocksM][Traits::kBlocksN][4], int tile) {
    uint32_t const stage = next_stage(tile);
    uint32_t a[Traits::kBlocksM][4];
    load_a(a, stage, 0);
#pragma unroll
    for (int j = 0; j < Traits::kBlocksN; j += 2) {
      uint32_t b[4];
      int const row = warp_n_ + j * 8 + lane_ % 8 + lane_ / 16 * 8;
      ldmatrix_x4(b, stage + Traits::kBOffset + swizzled_b(row, lane_ / 8 % 2));
#pragma unroll
      for (int i = 0; i < Traits::kBlocksM; ++i) {
        mma_outliers<T>(values[i][j], a[i], b[0], b[1]);
        mma_outliers<T>(values[i][j + 1], a[i], b[2], b[3]);
      }
    }
  }

  LinearW4A8Args<T> const& args_;
  char* shared_;
  uint32_t base_;  // shared_ in the shared address space
  int64_t m0_, n0_;
  int lane_, warp_, warp_m_, warp_n_;
  int code_tiles_;     // stages of xq and wq4
  int outlier_bytes_;  // of a row of xo
  int tiles_;          // stages in all
};

template <class T, class Tile>
__global__ void __launch_bounds__(W4TileTraits<T, Tile>::kThreads) linear_w4a8_tile(LinearW4A8Args<T> const args) {
  extern __shared__ __align__(128) char shared[];
  TileW4A8<T, Tile>(args, shared).run();
}

}  // namespace graphopt::mixq
