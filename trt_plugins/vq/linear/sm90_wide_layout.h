// Where the kernel of sm90_wide.cuh has its products, how it gets there from a code, and who works on what. Host and
// device.
#pragma once

#include <cstdint>

#include "common/sm90_grid.h"

namespace graphopt::vq {

constexpr int kWideGroups = 8;         // of eight columns, of a slice
constexpr int kWideCodes = 16;         // of a row of a slice: residuals 0 and 1 of group 0, then of group 1, ...
constexpr int kWideEntries = 1 << 12;  // of a codebook
constexpr int kWideTableBytes = kWideCodes * kWideEntries * 2;

/// Byte of a product. Tables of 8 KB follow each other, in which bits 1 to 12 of an address are a code; all lanes of a
/// warp look up the same group and residual at once.
GRAPHOPT_HOST_DEVICE constexpr int wide_place(int group, int residual, int entry) {
  return ((residual * kWideGroups + group) * kWideEntries + entry) * 2;
}
constexpr uint32_t kWideCodeMask = 2 * (kWideEntries - 1);

constexpr int kWideRunTiles = 4;  // of eight entries, after which a lane has products that lie together

/// The entry that is column `column` of tile `tile`, of those that a warp multiplies by all groups. Of a product, lane
/// t of a quad has columns 2 t and 2 t + 1: so after kWideRunTiles tiles it has twice as many that lie together.
GRAPHOPT_HOST_DEVICE constexpr int wide_entry(int tile, int column) {
  constexpr int kRun = 2 * kWideRunTiles;
  return tile / kWideRunTiles * (8 * kWideRunTiles) + column / 2 * kRun + tile % kWideRunTiles * 2 + column % 2;
}

/// The work of a cluster: units of rows, of sets of slices side by side. Clusters that run at once work on neighbouring
/// sets, whose codes share lines of memory; sets that are left when all clusters have had as many are shared evenly.
struct WideWalk {
  int32_t sets;
  int32_t units;  // of a set
  int32_t clusters;

  struct Place {
    int set, unit;
  };

  /// Units of the sets that are nobody's alone.
  GRAPHOPT_HOST_DEVICE int rest(int cluster) const {
    return static_cast<int>(int64_t{sets % clusters} * units * cluster / clusters);
  }
  GRAPHOPT_HOST_DEVICE int own() const { return sets / clusters * units; }
  GRAPHOPT_HOST_DEVICE int count(int cluster) const { return own() + rest(cluster + 1) - rest(cluster); }

  /// Where unit `i` of a cluster is.
  GRAPHOPT_HOST_DEVICE Place place(int cluster, int i) const {
    if (i < own()) return {i / units * clusters + cluster, i % units};
    int const left = rest(cluster) + i - own();
    return {sets / clusters * clusters + left / units, left % units};
  }
};

}  // namespace graphopt::vq
