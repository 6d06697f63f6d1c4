// Tensor-core kernel for M > 16: cp.async stages, ldmatrix, mma.sync.
//
// The operands are one stream of 64-byte columns: first the K bytes of xq and wq, then the C sizeof(T) bytes of xo and
// wo. An mma takes 32 bytes of K for int8, half, bfloat16 and TF32 alike, in the same register layout, so both products
// run through the same stages without a pause; between them the int32 sums become float32 in place, times sx sw.
//
//   stage: A [kRowsM][64 bytes], then B [kRowsN][64 bytes]. Two rows fill the 32 banks; 16-byte chunk c of row r lies
//   at chunk c ^ (r / 2 % 4), so that the 8 rows of an ldmatrix touch 8 different groups of banks.
#pragma once

#include "mixq/common/tile_epilogue.cuh"
#include "mixq/linear/kernel_common.cuh"
#include "mixq/linear/policy.h"

namespace graphopt::mixq {

template <class T, class Tile>
struct TileTraits {
  static constexpr int kStageK = 64;  // bytes along K per stage
  static constexpr int kChunks = kStageK / 16;
  static constexpr int kWarpsM = Tile::kRowsM / Tile::kWarpM;
  static constexpr int kWarpsN = Tile::kRowsN / Tile::kWarpN;
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
  static constexpr int kABytes = Tile::kRowsM * kStageK;
  static constexpr int kBBytes = Tile::kRowsN * kStageK;
  static constexpr int kStageBytes = kABytes + kBBytes;
  static constexpr int kSharedBytes = kStageBytes * Tile::kStages;
  static constexpr int kBlocksM = Tile::kWarpM / 16;  // mma rows of a warp
  static constexpr int kBlocksN = Tile::kWarpN / 8;   // mma columns of a warp
  using Epilogue = TileEpilogue<T, Tile, LinearArgs<T>>;

  static_assert(kABytes / 16 % kThreads == 0 && kBBytes / 16 % kThreads == 0, "every thread copies alike");
  static_assert(kBlocksN % 2 == 0, "ldmatrix x4 reads two mma columns");
  static_assert(Epilogue::kWarpScratch * kWarpsM * kWarpsN <= kSharedBytes, "the epilogue reuses the stages");
  static_assert(kSharedBytes <= 99 * 1024, "what sm_86, sm_89 and sm_120 give a block");
};

/// Byte offset of a 16-byte chunk in a staged tile.
__device__ __forceinline__ uint32_t swizzled(int row, int chunk) {
  return static_cast<uint32_t>(row * 64 + ((chunk ^ ((row >> 1) & 3)) << 4));
}

template <class T, class Tile>
class TileKernel {
  using Traits = TileTraits<T, Tile>;

 public:
  __device__ __forceinline__ TileKernel(LinearArgs<T> const& args, char* shared)
      : args_(args),
        shared_(shared),
        base_(shared_address(shared)),
        m0_(int64_t{blockIdx.x} * Tile::kRowsM),
        n0_(int64_t{blockIdx.y} * Tile::kRowsN),
        lane_(static_cast<int>(threadIdx.x) % 32),
        warp_(static_cast<int>(threadIdx.x) / 32),
        warp_m_(warp_ % Traits::kWarpsM * Tile::kWarpM),
        warp_n_(warp_ / Traits::kWarpsM * Tile::kWarpN),
        inner_tiles_((args.k + Traits::kStageK - 1) / Traits::kStageK),
        outlier_bytes_(args.capacity * static_cast<int>(sizeof(T))),
        tiles_(inner_tiles_ + (outlier_bytes_ + Traits::kStageK - 1) / Traits::kStageK) {}

  __device__ __forceinline__ void run() {
#pragma unroll
    for (int s = 0; s < Tile::kStages - 1; ++s) fetch(s);

    int32_t sums[Traits::kBlocksM][Traits::kBlocksN][4] = {};
    for (int tile = 0; tile < inner_tiles_; ++tile) {
      multiply(tile,
               [&](int i, int j, uint32_t const(&a)[4], uint32_t b0, uint32_t b1) { mma_s8(sums[i][j], a, b0, b1); });
    }
    float values[Traits::kBlocksM][Traits::kBlocksN][4];
    epilogue().scale(sums, values);
    for (int tile = inner_tiles_; tile < tiles_; ++tile) {
      multiply(tile, [&](int i, int j, uint32_t const(&a)[4], uint32_t b0, uint32_t b1) {
        mma_outliers<T>(values[i][j], a, b0, b1);
      });
    }
    // The stages become the epilogue's scratch: no copy may be in flight, nor a warp still reading.
    cp_async_wait<0>();
    __syncthreads();
    epilogue().write(values, shared_ + warp_ * Traits::Epilogue::kWarpScratch);
  }

 private:
  __device__ __forceinline__ typename Traits::Epilogue epilogue() const {
    return {args_, m0_ + warp_m_, n0_ + warp_n_, lane_};
  }

  /// Start copying tile `tile` into its stage; past the end only an empty group, to keep the count of groups.
  __device__ __forceinline__ void fetch(int tile) {
    if (tile < tiles_) {
      uint32_t const stage = base_ + static_cast<uint32_t>(tile % Tile::kStages * Traits::kStageBytes);
      bool const inner = tile < inner_tiles_;
      int const pitch = inner ? args_.k : outlier_bytes_;  // bytes of a row
      int const column = (inner ? tile : tile - inner_tiles_) * Traits::kStageK;
      char const* a = inner ? reinterpret_cast<char const*>(args_.xq) : reinterpret_cast<char const*>(args_.xo);
      char const* b = inner ? reinterpret_cast<char const*>(args_.wq) : reinterpret_cast<char const*>(args_.wo);
      fetch_rows<Tile::kRowsM>(stage, a, m0_, args_.m, pitch, column);
      fetch_rows<Tile::kRowsN>(stage + Traits::kABytes, b, n0_, args_.n, pitch, column);
    }
    cp_async_commit();
  }

  template <int kRows>
  __device__ __forceinline__ void fetch_rows(uint32_t shared, char const* source, int64_t first, int64_t rows,
                                             int pitch, int column) {
#pragma unroll
    for (int i = 0; i < kRows * Traits::kChunks / Traits::kThreads; ++i) {
      int const item = i * Traits::kThreads + static_cast<int>(threadIdx.x);
      int const row = item / Traits::kChunks, chunk = item % Traits::kChunks;
      int const byte = column + chunk * 16;
      bool const valid = first + row < rows && byte < pitch;
      cp_async_16(shared + swizzled(row, chunk), source + (valid ? (first + row) * pitch + byte : 0), valid);
    }
  }

  /// Wait for tile `tile`, start the fetch of the one that takes over the stage freed last, and run every mma of it.
  template <class Mma>
  __device__ __forceinline__ void multiply(int tile, Mma&& mma) {
    cp_async_wait<Tile::kStages - 2>();
    __syncthreads();  // everyone's copies of this tile have landed, and everyone has left the stage to be refilled
    fetch(tile + Tile::kStages - 1);
    uint32_t const stage = base_ + static_cast<uint32_t>(tile % Tile::kStages * Traits::kStageBytes);
#pragma unroll
    for (int step = 0; step < Traits::kStageK / kStepBytes; ++step) {
      uint32_t a[Traits::kBlocksM][4], b[Traits::kBlocksN / 2][4];
#pragma unroll
      for (int i = 0; i < Traits::kBlocksM; ++i) {
        ldmatrix_x4(a[i], stage + swizzled(warp_m_ + i * 16 + lane_ % 16, step * 2 + lane_ / 16));
      }
#pragma unroll
      for (int j = 0; j < Traits::kBlocksN / 2; ++j) {
        int const row = warp_n_ + j * 16 + lane_ % 8 + lane_ / 16 * 8;
        ldmatrix_x4(b[j], stage + Traits::kABytes + swizzled(row, step * 2 + lane_ / 8 % 2));
      }
#pragma unroll
      for (int i = 0; i < Traits::kBlocksM; ++i) {
#pragma unroll
        for (int j = 0; j < Traits::kBlocksN; ++j) {
          mma(i, j, a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
      }
    }
  }

  LinearArgs<T> const& args_;
  char* shared_;
  uint32_t base_;  // shared_ in the shared address space
  int64_t m0_, n0_;
  int lane_, warp_, warp_m_, warp_n_;
  int inner_tiles_;    // stages of xq and wq
  int outlier_bytes_;  // of a row of xo
  int tiles_;          // stages in all
};

template <class T, class Tile>
__global__ void __launch_bounds__(TileTraits<T, Tile>::kThreads) linear_tile(LinearArgs<T> const args) {
  extern __shared__ __align__(128) char shared[];
  TileKernel<T, Tile>(args, shared).run();
}

}  // namespace graphopt::mixq
