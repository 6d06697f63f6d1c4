// Stages of the linear kernels of cp.async and mma.sync whose operands have the same code width.
//
// The operands are one stream of 64-byte columns: first those of the codes of X and W, then those of the outlier
// channels. An mma takes 32 bytes of K for int4, int8, half, bfloat16 and TF32 alike, in the same register layout, so
// both products run through the same stages without a pause.
//
//   stage: A [kRowsM][64 bytes], then B [kRowsN][64 bytes]. Two rows fill the 32 banks; 16-byte chunk c of row r lies
//   at chunk c ^ (r / 2 % 4), so that the 8 rows of an ldmatrix touch 8 different groups of banks.
#pragma once

#include <cstdint>

#include "common/ptx.cuh"
#include "mixq/common/outlier_mma.cuh"

namespace graphopt::mixq {

/// Sizes that follow from a tile, see TileShape.
template <class Tile>
struct TileLayout {
  static constexpr int kStageK = 64;  // bytes along K per stage
  static constexpr int kSteps = kStageK / kStepBytes;
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

  static_assert(kABytes / 16 % kThreads == 0 && kBBytes / 16 % kThreads == 0, "every thread copies alike");
  static_assert(kBlocksN % 2 == 0, "ldmatrix x4 reads two mma columns");
  static_assert(kSharedBytes <= 99 * 1024, "what sm_86, sm_89 and sm_120 give a block");
};

/// Two matrices to be multiplied: rows of `pitch` bytes, a multiple of 16, of X and of W.
struct TileOperands {
  void const* x;
  void const* w;
  int pitch;
};

template <class Tile>
class TileStages {
  using Layout = TileLayout<Tile>;

 public:
  /// `shared`: kSharedBytes; m, n: sizes of Y.
  __device__ __forceinline__ TileStages(char* shared, TileOperands const& codes, TileOperands const& outliers,
                                        int64_t m, int64_t n)
      : codes_(codes),
        outliers_(outliers),
        m_(m),
        n_(n),
        base_(shared_address(shared)),
        m0_(int64_t{blockIdx.x} * Tile::kRowsM),
        n0_(int64_t{blockIdx.y} * Tile::kRowsN),
        lane_(static_cast<int>(threadIdx.x) % 32),
        warp_m_(static_cast<int>(threadIdx.x) / 32 % Layout::kWarpsM * Tile::kWarpM),
        warp_n_(static_cast<int>(threadIdx.x) / 32 / Layout::kWarpsM * Tile::kWarpN),
        code_tiles_((codes.pitch + Layout::kStageK - 1) / Layout::kStageK),
        tiles_(code_tiles_ + (outliers.pitch + Layout::kStageK - 1) / Layout::kStageK) {}

  __device__ __forceinline__ int code_tiles() const { return code_tiles_; }
  __device__ __forceinline__ int tiles() const { return tiles_; }  // those of outliers come last
  __device__ __forceinline__ int lane() const { return lane_; }
  /// This warp's first token and row of W.
  __device__ __forceinline__ int64_t first_token() const { return m0_ + warp_m_; }
  __device__ __forceinline__ int64_t first_row() const { return n0_ + warp_n_; }

  /// Start the copies that later ones follow.
  __device__ __forceinline__ void start() {
#pragma unroll
    for (int s = 0; s < Tile::kStages - 1; ++s) fetch(s);
  }

  /// Wait for tile `tile`, start the fetch of the one that takes over the stage freed last, and call
  /// mma(step, i, j, a, b0, b1) for every 32 bytes of K and every block of 16 x 8 of this warp.
  template <class Mma>
  __device__ __forceinline__ void multiply(int tile, Mma&& mma) {
    cp_async_wait<Tile::kStages - 2>();
    __syncthreads();  // everyone's copies of this tile have landed, and everyone has left the stage to be refilled
    fetch(tile + Tile::kStages - 1);
    uint32_t const stage = base_ + static_cast<uint32_t>(tile % Tile::kStages * Layout::kStageBytes);
#pragma unroll
    for (int step = 0; step < Layout::kSteps; ++step) {
      uint32_t a[Layout::kBlocksM][4], b[Layout::kBlocksN / 2][4];
#pragma unroll
      for (int i = 0; i < Layout::kBlocksM; ++i) {
        ldmatrix_x4(a[i], stage + swizzled(warp_m_ + i * 16 + lane_ % 16, step * 2 + lane_ / 16));
      }
#pragma unroll
      for (int j = 0; j < Layout::kBlocksN / 2; ++j) {
        int const row = warp_n_ + j * 16 + lane_ % 8 + lane_ / 16 * 8;
        ldmatrix_x4(b[j], stage + Layout::kABytes + swizzled(row, step * 2 + lane_ / 8 % 2));
      }
#pragma unroll
      for (int i = 0; i < Layout::kBlocksM; ++i) {
#pragma unroll
        for (int j = 0; j < Layout::kBlocksN; ++j) {
          mma(step, i, j, a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
      }
    }
  }

  /// Make the stages free for other use: no copy is in flight, nor a warp still reading.
  __device__ __forceinline__ void finish() const {
    cp_async_wait<0>();
    __syncthreads();
  }

 private:
  /// Byte offset of a 16-byte chunk in a staged tile.
  __device__ __forceinline__ static uint32_t swizzled(int row, int chunk) {
    return static_cast<uint32_t>(row * 64 + ((chunk ^ ((row >> 1) & 3)) << 4));
  }

  /// Start copying tile `tile` into its stage; past the end only an empty group, to keep the count of groups.
  __device__ __forceinline__ void fetch(int tile) {
    if (tile < tiles_) {
      uint32_t const stage = base_ + static_cast<uint32_t>(tile % Tile::kStages * Layout::kStageBytes);
      bool const inner = tile < code_tiles_;
      // Member by member: a reference to one of the two would keep them in local memory.
      void const* x = inner ? codes_.x : outliers_.x;
      void const* w = inner ? codes_.w : outliers_.w;
      int const pitch = inner ? codes_.pitch : outliers_.pitch;
      int const column = (inner ? tile : tile - code_tiles_) * Layout::kStageK;
      fetch_rows<Tile::kRowsM>(stage, x, m0_, m_, pitch, column);
      fetch_rows<Tile::kRowsN>(stage + Layout::kABytes, w, n0_, n_, pitch, column);
    }
    cp_async_commit();
  }

  template <int kRows>
  __device__ __forceinline__ void fetch_rows(uint32_t shared, void const* source, int64_t first, int64_t rows,
                                             int pitch, int column) {
#pragma unroll
    for (int i = 0; i < kRows * Layout::kChunks / Layout::kThreads; ++i) {
      int const item = i * Layout::kThreads + static_cast<int>(threadIdx.x);
      int const row = item / Layout::kChunks, chunk = item % Layout::kChunks;
      int const byte = column + chunk * 16;
      bool const valid = first + row < rows && byte < pitch;
      cp_async_16(shared + swizzled(row, chunk),
                  static_cast<char const*>(source) + (valid ? (first + row) * pitch + byte : 0), valid);
    }
  }

  TileOperands const codes_, outliers_;
  int64_t m_, n_;
  uint32_t base_;  // in the shared address space
  int64_t m0_, n0_;
  int lane_, warp_m_, warp_n_;
  int code_tiles_;
  int tiles_;
};

}  // namespace graphopt::mixq
