// Which linear kernel runs, and its tile. Host code only.
#pragma once

#include <cstdint>

#include "mixq/common/tile_shape.h"

namespace graphopt::mixq {

// 64 x 64 per warp keeps shared-memory reads at half of what the tensor cores need in time; 128 accumulators then leave
// room for one or two blocks on a multiprocessor. 96 KB of stages is the most that sm_86, 89 and 120 can hold.
using Tile256x128 = TileShape<256, 128, 64, 64, 4>;
using Tile128x128 = TileShape<128, 128, 64, 64, 4>;
using Tile64x64 = TileShape<64, 64, 32, 32, 6>;

/// Bytes of W that are brought nearer while the kernel before ends: what memory delivers in that time. More delays what
/// is read first; benchmarks/results/h100/mixq_linear_chain.json has the measurements.
constexpr int64_t kPrefetchBytes = int64_t{4} << 20;
/// The same where tokens are few and each warp reads its part of W as it needs it.
constexpr int64_t kFewTokensPrefetchBytes = int64_t{8} << 20;

constexpr int64_t kSmallM = 16;  // the rows of one mma: W is read once, straight into registers

/// Kernels of mma.sync; those of Hopper come first where they run (sm90_policy.h).
enum class LinearKernel { kGeneric, kSmallM, kTile256x128, kTile128x128, kTile64x64 };

/// The largest tile that still gives every multiprocessor a block: a larger tile reads less, an idle one does nothing.
///
/// Args:
///   m, n: sizes of Y.
///   vectors: K is a multiple of 16 and every operand of the products is aligned to 16 bytes.
///   multiprocessors: of the device.
constexpr LinearKernel pick_linear(int64_t m, int64_t n, bool vectors, int multiprocessors) {
  if (!vectors) return LinearKernel::kGeneric;
  if (m <= kSmallM) return LinearKernel::kSmallM;
  if (Tile256x128::blocks(m, n) >= multiprocessors) return LinearKernel::kTile256x128;
  if (Tile128x128::blocks(m, n) >= multiprocessors) return LinearKernel::kTile128x128;
  return LinearKernel::kTile64x64;
}

}  // namespace graphopt::mixq
