// Tiles of the Hopper linear kernel: sizes, shared memory and the order in which Y is walked. Host and device.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define GRAPHOPT_HOST_DEVICE __host__ __device__
#else
#define GRAPHOPT_HOST_DEVICE
#endif

namespace graphopt::mixq {

/// How the two multiplying warpgroups of a block share the work.
///   kCooperative: the halves of one tile of Y. The largest tiles, so the least traffic.
///   kStaggered: the same, the second one kLag stages behind, so that they do not scale and store at the same time.
///   kPingPong: alternate tiles of Y, so that one multiplies while the other scales and stores.
enum class Sm90Schedule { kCooperative, kStaggered, kPingPong };

/// A block's share of Y [M, N], and how many blocks along M or N form a cluster.
///   kRowsM, kRowsN: rows of X and of W in a block.
///   kClusterM > 1: blocks below each other, which share the rows of W. kClusterN > 1: beside each other, rows of X.
template <int kRowsM_, int kRowsN_, int kClusterM_, int kClusterN_, Sm90Schedule kSchedule>
struct Sm90Tile {
  static constexpr bool kPingPong = kSchedule == Sm90Schedule::kPingPong;
  static constexpr bool kStaggered = kSchedule == Sm90Schedule::kStaggered;
  static constexpr int kRowsM = kRowsM_;
  static constexpr int kRowsN = kRowsN_;
  static constexpr int kClusterM = kClusterM_;
  static constexpr int kClusterN = kClusterN_;
  static constexpr int kCluster = kClusterM * kClusterN;
  static_assert(kClusterM == 1 || kClusterN == 1, "a cluster shares one operand");
  static_assert(kRowsM <= 256 && kRowsN <= 256, "the rows of a box of the copy engine");
};

/// Sizes that follow from a tile and the 2-byte type T.
template <class T, class Tile_>
struct Sm90Traits {
  using Tile = Tile_;
  static_assert(sizeof(T) == 2);
  static constexpr int kRowBytes = 128;     // of an operand's tile, along K or C
  static constexpr int kWgmmaRowsM = 64;
  static constexpr int kConsumers = 2;      // warpgroups
  static constexpr int kReaderWarps = 4 * (Tile::kPingPong ? 1 : kConsumers);  // of one stage
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr int kRows = Tile::kRowsM / (Tile::kPingPong ? 1 : kConsumers);  // of Y, of a warpgroup
  static constexpr int kBlocks = kRows / kWgmmaRowsM;
  static constexpr int kSums = Tile::kRowsN / 2;           // registers of one block
  static_assert(kBlocks * kWgmmaRowsM == kRows && kBlocks * kSums <= 128);

  // 40 + 2 x 232 registers for 128 threads each fit the 64 K of a multiprocessor.
  static constexpr int kProducerRegisters = 40;
  static constexpr int kConsumerRegisters = 232;

  static constexpr int kXBytes = Tile::kRowsM * kRowBytes;
  static constexpr int kWBytes = Tile::kRowsN * kRowBytes;
  static constexpr int kStageBytes = kXBytes + kWBytes;
  static constexpr int kStoreCols = kRowBytes / int{sizeof(T)};
  static constexpr int kStoreBytes = kWgmmaRowsM * kRowBytes;
  static constexpr int kStagingBytes = 2 * kConsumers * kStoreBytes;
  static constexpr int kSwBytes = Tile::kRowsN * 4;
  static constexpr int kVectorBytes = kSwBytes + Tile::kRowsN * int{sizeof(T)};  // sw and bias of a tile
  static constexpr int kVectorSlots = Tile::kPingPong ? kConsumers : 1;
  static constexpr int kBarrierBytes = 256;
  static constexpr int kMaxSharedBytes = 227 * 1024;
  static constexpr int kStages =
      (kMaxSharedBytes - kStagingBytes - kVectorSlots * kVectorBytes - kBarrierBytes) / kStageBytes;
  static_assert(kStages >= 3 && 8 * 2 * (kStages + kVectorSlots) <= kBarrierBytes);

  static constexpr int kStagingOffset = kStages * kStageBytes;
  static constexpr int kVectorOffset = kStagingOffset + kStagingBytes;
  static constexpr int kBarrierOffset = kVectorOffset + kVectorSlots * kVectorBytes;
  static constexpr int kSharedBytes = kBarrierOffset + kBarrierBytes;

  // The leader signals once per tile, and its lead is bounded by the ring: with this many tiles of codes it cannot signal
  // for the next tile before the other has awaited this one.
  static constexpr int kLag = 2;
  static constexpr int kMinStaggeredTiles = kStages;
  static_assert(kStageBytes % 1024 == 0 && kStoreBytes % 1024 == 0, "a swizzled tile starts at a multiple of 1024");
};

/// Order of the clusters of tiles: `group` rows of them are walked column by column before the next rows, so that the
/// tiles in flight together form about a square and share most of X and W in L2.
struct Sm90Grid {
  int32_t down;    // clusters along M
  int32_t across;  // clusters along N
  int32_t group;

  struct Cell {
    int down;
    int across;
  };

  GRAPHOPT_HOST_DEVICE int clusters() const { return down * across; }

  GRAPHOPT_HOST_DEVICE Cell cell(int index) const {
    int const per_group = group * across;
    int const first = index / per_group * group;
    int const rows = down - first < group ? down - first : group;
    int const within = index % per_group;
    return {first + within % rows, within / rows};
  }
};

}  // namespace graphopt::mixq
